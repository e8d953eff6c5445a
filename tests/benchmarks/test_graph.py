"""What long responses cost: exact sums over a graph by its recursions, by length, beside a sample, and in memory."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.scene import engines, grow
from firstorder.sim.exact.world import scatter
from firstorder.sim.model.policy import load

SETTINGS = {
    "world": "graph",
    "task": "chain",
    "prompts": 64,
    "positions": 8,
    "vocab": 16,
    "right": 2,
    "horizon": 32_768,
    "coldstart": "calibrated",
    "coldstart_steps": 400,
}
QUICK = SETTINGS | {"horizon": 256, "prompts": 8, "coldstart_steps": 100}
SAMPLED = 256
PEAK = """
import json, sys
from firstorder.cli.main import run
from firstorder.core import memory
code = run(["measure", "minirl-r3", *[x for pair in sys.argv[1:] for x in ("--set", "sim." + pair)]])
print(json.dumps([code, memory.peak()]))
"""


@pytest.fixture(scope="module")
def settled(benchmarking):
    """A graph of 1,024 contexts with the log-probs of its policy."""
    sim = Sim(**SETTINGS if benchmarking else QUICK)
    seeds = torch.arange(1)
    graph = grow(sim)
    with torch.no_grad():
        return graph, graph.run(load(starting_weights(sim, seeds), engines(sim, seeds).pi, sim)).logp


def value_and_slopes(graph, logp):
    return objectives.value(logp, graph), objectives.slopes(logp, graph)


def test_a_token_costs_the_same_at_any_length(settled, benchmarking, in_turns):
    """J and ∂J/∂log π of T tokens over those of 32,768, so many times as make the same tokens."""
    graph, logp = settled
    longest = graph.horizon
    calls = {f"{longest:,}_tokens": lambda: value_and_slopes(graph, logp)}
    for horizon in (64, 1024, 8192) if benchmarking else (64,):
        shorter = replace(graph, horizon=horizon)

        def repeated(shorter=shorter, times=longest // horizon):
            for _ in range(times):
                value_and_slopes(shorter, logp)

        calls[f"{horizon:,}_tokens"] = repeated
    in_turns(rounds=5, **calls)


def test_the_recursions_beside_a_sample(settled, benchmarking, facts):
    """How many responses a sample takes to know J and ∂J/∂log π to 1 %, from the spread of a few, and how long."""
    graph, logp = settled
    started = time.process_time()
    exact, slopes = value_and_slopes(graph, logp)
    seconds = time.process_time() - started
    started = time.process_time()
    sample = replace(graph, samples=SAMPLED).responses(logp)
    rewards = sample.rewards - exact[:, None]  # the best baseline that is known, and no bias
    found = scatter(rewards[..., None].expand(sample.mask.shape), sample, graph.contexts) / len(sample)
    of_sample = time.process_time() - started

    def free(edges):
        """As a policy moves it: less the chance that the token had anyway."""
        return edges - logp.exp() * edges.sum(-1, keepdim=True)

    squares, along, mean = [], [], free(slopes)
    for row in range(len(sample)):
        one = sample.of(slice(row, row + 1))
        edges = free(scatter(rewards[:, row, None, None].expand(one.mask.shape), one, graph.contexts))
        squares.append(edges.square().sum())
        along.append((edges * mean).sum())
    along, spread = torch.stack(along), torch.stack(squares).mean() - mean.square().sum()
    needed = {
        "J": float(sample.rewards.var() / exact[0].square()) / 1e-4,
        "its slopes": float(spread / mean.square().sum()) / 1e-4,
    }
    assert (sample.rewards.mean() - exact[0]).abs() <= 5 * sample.rewards.std() / len(sample) ** 0.5
    assert (along.mean() - mean.square().sum()).abs() <= 5 * along.std() / len(sample) ** 0.5
    assert along.mean() == pytest.approx(float((free(found) * mean).sum()))
    facts[f"J and its slopes at {graph.horizon:,} tokens by recursion"] = f"{seconds:.2f} s"
    for name, count in needed.items():
        time_of = count * of_sample / len(sample)
        facts[f"{name} to 1 % by a sample"] = f"{count:,.0f} responses, {time_of:,.0f} s, from {len(sample)} of them"
    if benchmarking:
        assert seconds < 15


def test_memory_of_a_whole_measurement(benchmarking, facts):
    settings = (SETTINGS if benchmarking else QUICK) | {"numerics.scale": 0.02}
    pairs = [f"{key}={value}" for key, value in settings.items()]
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PEAK, *pairs], capture_output=True, text=True, check=True)
    code, peak = json.loads(done.stdout.splitlines()[-1])
    facts[f"measure minirl-r3 at {settings['horizon']:,} tokens"] = (
        f"{peak / 2**30:.2f} GiB, {time.monotonic() - started:.0f} s by the clock"
    )
    assert code == 0
    assert peak < 2 * 2**30
