"""Which part of the error of an update without importance sampling makes training collapse: each trained by itself.

    python docs/examples/drift.py [FIRST_SEED [SEEDS [TOKENS [UPDATES [FILE]]]]]

Exact expected updates of MiniRL at θ = θ_old. What the ratio π/μ takes out of an update is a bias, a sum over contexts,
and at each of them the sum of a drift along KL(μ‖π) and a rest (docs/theory.md, "The drift without importance
sampling"). The arms are the update with the ratio, without it, and with parts of that bias left in. The last has
neither a ratio nor a baseline. "Without, and no drift" is the weight A - V(c): a perfect baseline for every token.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.sim import optimizer
from firstorder.sim.claims.drift import Drift, drift
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.exact import objectives
from firstorder.sim.exact.scene import build, engines
from firstorder.sim.model.policy import flatten, unflatten
from firstorder.sim.training.expected import training_world
from firstorder.sim.trials.collapse import collapsed
from firstorder.sim.trials.long import BASE, LongCondition


def along_kl(one: Drift) -> Tensor:
    """d V μ: what moves a context along KL(μ‖π), by edge."""
    return one.bare.sum(-1, keepdim=True) * one.scene.mu_old.logp.exp()


def where(lost: bool) -> Callable[[Drift], Tensor]:
    """No ratio at contexts that only failing responses come to, or at all others."""
    return lambda one: torch.where(one.failing[..., None] == lost, one.bare, one.weighed)


HEAD = "| update | J at the start | lowest J | J at the end | collapsed |\n" + "|---" * 5 + "|"
ARMS: dict[str, Callable[[Drift], Tensor]] = {
    "with the ratio": lambda one: one.weighed,
    "without": lambda one: one.bare,
    "without, where all fail": where(True),
    "without, elsewhere": where(False),
    "with, and the drift": lambda one: one.weighed + along_kl(one),
    "without, and no drift": lambda one: one.bare - along_kl(one),
    "without, and no baseline": lambda one: one.scene.worth * one.scene.mu_old.logp.exp(),
}


def course(arm: str, condition: LongCondition, seeds: range) -> Tensor:
    """J of π on the prompts that are trained on, before every update and after the last, `[S, 1 + updates]`."""
    sim, members = condition.world(seeds), torch.tensor(seeds)
    world, pair, weights = training_world(sim), engines(sim, members), starting_weights(sim, members)
    settings = optimizer.settings([condition.method("minirl").optimizer] * len(seeds))
    vector, found = flatten(weights), []
    state = optimizer.start(vector)
    for _ in range(condition.updates + 1):
        one = drift(build(sim, world, pair, unflatten(vector, weights), modes=["disabled"]), "disabled")
        found.append(objectives.value(one.logp, world))
        clipped, _ = optimizer.clip(-one.along(ARMS[arm](one)), settings)
        vector, state = optimizer.step(vector, clipped, state, settings)
    return torch.stack(found, dim=-1)


def outcome(arm: str, condition: LongCondition, seeds: range) -> dict[str, Any]:
    """What became of an arm: J over updates, the mean over seeds, and how many of them collapsed."""
    j = course(arm, condition, seeds)
    lost = collapsed(j[:, :: max(1, condition.updates // 12)])
    return {"arm": arm, "collapsed": int(lost.sum()), "seeds": len(seeds), "j": j.mean(0).tolist()}


def line(row: dict[str, Any]) -> str:
    """Markdown."""
    j = row["j"]
    return f"| {row['arm']} | {j[0]:.2f} | {min(j):.2f} | {j[-1]:.2f} | {row['collapsed']} of {row['seeds']} |"


def main(first: int = 0, count: int = 4, horizon: int = BASE.horizon, updates: int = 60) -> list[dict[str, Any]]:
    """Print the table, a row an arm."""
    condition = BASE.but(horizon=horizon, updates=updates)
    print(HEAD)
    rows = []
    for arm in ARMS:
        rows.append(outcome(arm, condition, range(first, first + count)))
        print(line(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:5]]
    rows = main(*numbers)
    if len(sys.argv) > 5:
        command = " ".join(["python", "docs/examples/drift.py", *sys.argv[1:5], "FILE"])
        Path(sys.argv[5]).write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
