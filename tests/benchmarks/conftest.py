"""After a benchmark run: the ratios between its medians, as text."""

import platform

import pytest
import torch

MEDIANS = {}
FACTS = {}


@pytest.fixture
def record(benchmark):
    """Run a function under the benchmark and keep its median for the ratios."""

    def run(name, function, **options):
        benchmark.pedantic(function, rounds=options.get("rounds", 5), warmup_rounds=options.get("warmup", 1))
        if benchmark.enabled:
            MEDIANS[name] = benchmark.stats.stats.median

    return run


@pytest.fixture(scope="session")
def facts():
    return FACTS


def pytest_terminal_summary(terminalreporter):
    if not MEDIANS and not FACTS:
        return
    write = terminalreporter.write_line
    terminalreporter.section("figures")
    write(f"torch {torch.__version__}, python {platform.python_version()}, {torch.get_num_threads()} threads")
    for name, value in FACTS.items():
        write(f"{name}: {value}")
    for line in ratios(MEDIANS, FACTS):
        write(line)


def ratios(median, facts):
    if "tree" in median:
        speed = facts["contexts"] / median["tree"]
        yield f"value and gradient of the tree: {median['tree']:.4f} s, {speed:,.0f} nodes/s"
    if {"loop", "tree"} <= set(median):
        whole = median["loop"] * facts["responses"] / facts["looped"]
        ratio = whole / median["tree"]
        yield f"loop over sequences / tree: {ratio:.0f}x ({facts['looped']} timed, linear in sequences)"
    if {"padded", "tree"} <= set(median):
        yield f"padded batch of all sequences / tree: {median['padded'] / median['tree']:.1f}x"
    if {"ten", "bare"} <= set(median):
        yield f"ten recipes together / bare forward and backward: {median['ten'] / median['bare']:.1f}x"
    if {"ensemble", "singles"} <= set(median):
        yield f"64 runs one after another / an ensemble of 64: {median['singles'] / median['ensemble']:.1f}x"
    if {"ensemble", "bare_training"} <= set(median):
        ratio = median["ensemble"] / median["bare_training"]
        yield f"a training step of 64 / its bare forward and backward: {ratio:.1f}x"
    for seeds in (1, 4):
        together, alone = (median.get(f"{kind} of {seeds}") for kind in ("grid", "cells"))
        if together and alone:
            speed = f"{16 / together:.1f} cells/s as one ensemble, {16 / alone:.1f} cell after cell"
            yield f"a grid of 16 cells, seeds {seeds}: {speed}, {alone / together:.1f}x"
    for name in ("small", "large"):
        if name in facts.get("memory", {}):
            yield f"peak memory, {name}: {facts['memory'][name]}"
