"""What replay brings and what it costs: the parts of what an update is off by, for every way to replay.

    python docs/examples/replay.py [tree|long [SEED [UPDATES ...]]]

MiniRL without a clip. `tree` has the engines of `[sim]` by default; `long` has responses of 512 tokens, 32 experts and
a noise fitted to what is published of Qwen3-30B-A3B with FP8 rollouts, 1.5e-3 nats a token and 10% of the routes.
UPDATES are the minibatches that are looked at, counted from 0: how many updates came before. The parts are those of the
gradient (docs/theory.md), each by its length relative to that of the natural gradient.
"""

import sys
from collections.abc import Sequence

import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read
from firstorder.sim.config import Sim
from firstorder.sim.exact.hybrids import PARTS
from firstorder.sim.exact.split import TARGET, Splits
from firstorder.sim.exact.steps import splits
from firstorder.sim.trials.calibrate import PUBLISHED_FLIPS, PUBLISHED_KL, calibrate
from firstorder.sim.trials.long import BASE

MARGIN = {"tree": 0.02, "long": 0.0003}  # of probabilities of 8 experts, and of 32
LR = 0.01  # of the steps between minibatches: plain gradient ascent
COLUMNS = ("replay", "updates before", "J(target) - J(natural)", "kl to target", *PARTS, TARGET, "in all")


def world(name: str, seed: int) -> Sim:
    """The `[sim]` section of either world."""
    if name == "tree":
        return Sim(seed=seed, lr=LR)
    more = (("experts", 32), ("top_k", 8), ("lr", LR))  # of fewer experts 10% of the routes cost more nats
    sim = BASE.but(problems=4, sim=more).world(range(seed, seed + 1))
    found = calibrate(sim, torch.tensor([seed]), wanted_kl=PUBLISHED_KL, wanted_flips=PUBLISHED_FLIPS)
    print(f"{found.kl:.2e} nats a token, {found.flip_rate:.1%} of the routes\n")
    return sim.model_copy(update={"numerics": found.numerics})


def rules(name: str) -> tuple[str, ...]:
    """The ways to replay, as a recipe spells them."""
    return "disabled", "R2", "R3", f"R3 margin={MARGIN[name]}", "R3 condition=0.9", "R3 gates=replayed"


def recipe(rule: str) -> Recipe:
    """MiniRL under a replay."""
    tree = {**read("minirl"), "router_replay": rule, "clip": {"kind": "none"}}
    return build(Recipe, tree)


def line(rule: str, one: Splits) -> str:
    """A row of the table, in Markdown."""
    assert one.gradient is not None
    sizes = [one.gradient.parts[name].norm for name in (*PARTS, TARGET)] + [one.gradient.norm]
    bias, to_target = -one.value.parts[TARGET].value, one.kl.total - one.kl.parts[TARGET].value
    cells = [rule, str(one.staleness), f"{bias:+.1e}", f"{to_target:.2e}", *(f"{size:.4f}" for size in sizes)]
    return "| " + " | ".join(cells) + " |"


def main(name: str = "tree", seed: int = 0, updates: Sequence[int] = (0, 3)) -> list[list[Splits]]:
    """Print the table, a row for each way to replay at each minibatch."""
    sim = world(name, seed)
    found = splits([recipe(rule) for rule in rules(name)], sim, sorted(updates))
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in found:
        for rule, one in zip(rules(name), row, strict=True):
            print(line(rule, one))
    return found


if __name__ == "__main__":
    first, *numbers = [*sys.argv[1:2], "tree"][:1] + sys.argv[2:]
    main(first, int(numbers[0]) if numbers else 0, [int(each) for each in numbers[1:]] or (0, 3))
