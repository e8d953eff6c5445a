"""Things timed in turns in one process, so that what disturbs one disturbs all; and what came out, as text."""

import os
import platform
import statistics
import time

import pytest
import torch

FACTS = {}


@pytest.fixture
def facts(benchmarking):
    """Where a figure is left, by name; the figures of a run without --benchmark-enable are nobody's."""
    return FACTS if benchmarking else {}


@pytest.fixture(scope="session")
def benchmarking(request):
    return request.config.getoption("benchmark_enable") or request.config.getoption("benchmark_only")


@pytest.fixture
def in_turns(benchmarking, facts):
    """Calls functions in turns and states each one's time over the first's: median [quartiles], extremes.

    CPU seconds of this process, which runs on one thread: another process on the machine does not count. Without
    --benchmark-enable every function is called once. FIRSTORDER_ROUNDS makes it shorter.
    """

    def measure(rounds=15, scale=1.0, **functions):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for call in functions.values():
                call()
            spent = {name: [] for name in functions}
            for _ in range(int(os.environ.get("FIRSTORDER_ROUNDS", rounds)) if benchmarking else 0):
                for name, call in functions.items():
                    started = time.process_time()
                    call()
                    spent[name].append(time.process_time() - started)
        finally:
            torch.set_num_threads(threads)
        if not benchmarking:
            return
        first, *others = spent
        for name in others:
            ratios = [scale * a / b for a, b in zip(spent[name], spent[first], strict=True)]
            seconds = " and ".join(f"{statistics.median(spent[x]):.3f} s" for x in (name, first))
            facts[f"{name} / {first}".replace("_", " ")] = f"{spread(ratios)} ({seconds})"

    return measure


@pytest.fixture
def state(facts):
    """Leaves the spread of some ratios under a name."""

    def leave(name, ratios):
        facts[name] = spread(ratios)

    return leave


def spread(values):
    """Median, quartiles, extremes and how many there are."""
    low, middle, high = statistics.quantiles(values, n=4)
    found = f"{middle:.4g} [{low:.4g}, {high:.4g}], {min(values):.4g} to {max(values):.4g}"
    return f"{found} in {len(values)} rounds"


def pytest_terminal_summary(terminalreporter):
    if not FACTS:
        return
    terminalreporter.section("figures")
    where = f"{os.cpu_count()} cores, timed on one thread"
    terminalreporter.write_line(f"torch {torch.__version__}, python {platform.python_version()}, {where}")
    for name, value in FACTS.items():
        terminalreporter.write_line(f"{name}: {value}")
