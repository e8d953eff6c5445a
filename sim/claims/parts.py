"""The theorem of the split: its parts add up, and R3 takes one of them out of the ratio and puts it into the target."""

from __future__ import annotations

from statistics import fmean

import torch

from firstorder.core.method.recipe import Recipe
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.hybrids import FLIPS
from firstorder.sim.exact.measurement import update
from firstorder.sim.exact.objectives import gradient, values
from firstorder.sim.exact.scene import MODES, Scene, build, engines, grow
from firstorder.sim.exact.split import TARGET, Split, Splits
from firstorder.sim.exact.staleness import path
from firstorder.sim.exact.steps import splits
from firstorder.sim.trials.budget import Budget

from .claim import EXACT, Claim, Outcome, theorem
from .ensemble import recipe
from .identities import SCALE, STALENESS

POLICIES = 4
SMALL = Sim(horizon=4, prompts=2, width=8, expert_width=8)
SPLIT = ("minirl", "minirl-r2", "minirl-r3", "grpo")


def _scene(sim: Sim, stale: int) -> Scene:
    """One policy with all targets, made without a split."""
    theta_old, pair = starting_weights(sim, torch.tensor([sim.seed])), engines(sim, torch.arange(1))
    *_, theta = path(sim, pair, theta_old, stale)
    return build(sim, grow(sim), pair, theta_old, theta if stale else None, MODES)


def _off(a: float, b: float) -> float:
    """|a - b| relative to b."""
    return abs(a - b) / abs(b)


def _deviations(found: Splits, scene: Scene, method: Recipe) -> dict[str, float]:
    """How far the parts of each total add up to something else than it is without them, relative to it."""
    mode = str(method.router_replay)
    known, wanted = values(scene, mode), gradient(scene, "disabled")[0]
    assert found.gradient is not None
    rest = (found.gradient.scale or 0.0) * update(scene, method)[0] - wanted
    totals = {
        "value": float(known.j_seq_natural - known.j_mu),
        "error": float(known.error + known.replay_bias),
        "gradient": float(rest @ wanted / (wanted @ wanted)),
    }
    size = float(rest.norm() / wanted.norm())
    return {
        **{name: _off(_summed(getattr(found, name)), total) for name, total in totals.items()},
        "gradient norm": _off(found.gradient.norm or 0.0, size),
    }


def _summed(split: Split) -> float:
    return sum(part.value for part in split.parts.values())


def _split(budget: Budget) -> Outcome:
    deviations: dict[str, float] = {}
    sizes: dict[str, list[dict[str, float]]] = {}
    methods = [recipe(name) for name in SPLIT]
    for policy in range(min(budget.policies, POLICIES)):
        seed, numerics = budget.first_seed + policy, Numerics(kind="noise", scale=SCALE, seed=policy)
        sim = SMALL.model_copy(update={"seed": seed, "numerics": numerics})
        for stale, row in zip((0, STALENESS), splits(methods, sim, [0, STALENESS]), strict=True):
            scene = _scene(sim, stale)
            for name, method, found in zip(SPLIT, methods, row, strict=True):
                key = f"{name} at staleness {stale}"
                for of, off in _deviations(found, scene, method).items():
                    deviations[f"{key}, {of}"] = max(off, deviations.get(f"{key}, {of}", 0.0))
                assert found.gradient is not None
                sizes.setdefault(key, []).append({part: one.norm or 0.0 for part, one in found.gradient.parts.items()})
            if not stale:
                moved = _off(row[2].value.parts[TARGET].value, row[0].value.parts[FLIPS].value)
                deviations["flips without replay, target of R3"] = moved
    means = {key: {part: fmean(one[part] for one in each) for part in each[0]} for key, each in sizes.items()}
    return theorem(deviations, part_over_gradient=means, threshold=EXACT)


CLAIMS = [
    Claim(
        id="split",
        statement="numerics, gates, flips, staleness, target and method add up to what an update is off by; R3 moves "
        "the flips from the ratio to the target",
        source="this project; hybrid policies",
        kind="theorem",
        rule=f"the parts of J, of its first-order error and of c u - g add up within {EXACT:g}; at theta_old the flips "
        "of J without replay are the target part of R3",
        check=_split,
    ),
]
