"""What each way to replay brings and what it costs: the parts of what an update is off by, at every mini-batch.

Nothing is trained. A policy and its two engines are fixed, θ takes steps of plain gradient ascent, and the update of
MiniRL without a clip is split by hybrid policies (`sim.exact.split`). Three ways are ruled (`router_replay.margin`,
`condition`), and one replays gate weights too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read
from firstorder.sim.config import Sim
from firstorder.sim.exact.compare import Shared, scene_of
from firstorder.sim.exact.hybrids import PARTS
from firstorder.sim.exact.split import TARGET, Splits
from firstorder.sim.exact.steps import splits
from firstorder.sim.trials.calibrate import PUBLISHED_FLIPS, PUBLISHED_KL, calibrate
from firstorder.sim.trials.long import BASE

from .kept import kept, median, over
from .study import Answer, Plan, Study

MARGIN = {"tree": 0.02, "long": 0.0003}  # probabilities of 8 experts, and of 32
LR = 0.01  # of the steps between mini-batches: plain gradient ascent
UPDATES, QUICK_UPDATES = (0, 1, 3, 7, 63), (0, 3)
SCHEDULE = {"prompts": 64, "group_size": 16, "minibatches": 1}  # of the mini-batch whose variance is told
SAMPLED = (0, 7)  # mini-batches at which it is, of `long`: a tree forms the gradient of every response for it
KEYS = (*PARTS, TARGET)


def world(name: str, seed: int) -> Sim:
    """The `[sim]` section of either world: its defaults, or 512 tokens and engines fitted to the published pair."""
    if name == "tree":
        return Sim(seed=seed, lr=LR)
    more = (("experts", 32), ("top_k", 8), ("lr", LR))  # of fewer experts 10% of the routes cost more nats
    sim = BASE.but(problems=4, sim=more).world(range(seed, seed + 1))
    policy, draw = torch.tensor([seed]), torch.zeros(1, dtype=torch.int64)
    found = calibrate(sim, policy, wanted_kl=PUBLISHED_KL, wanted_flips=PUBLISHED_FLIPS, draws=draw)
    return sim.model_copy(update={"numerics": found.numerics})


def rules(name: str) -> tuple[str, ...]:
    """The ways to replay, as a recipe spells them."""
    return "disabled", "R2", "R3", f"R3 margin={MARGIN[name]}", "R3 condition=0.9", "R3 gates=replayed"


def recipe(rule: str) -> Recipe:
    """MiniRL under a replay, without a clip: what is dropped would be a part of its own."""
    tree = {**read("minirl"), "router_replay": rule, "clip": {"kind": "none"}, "schedule": SCHEDULE}
    return build(Recipe, tree)


def split(name: str, seed: int, updates: Sequence[int]) -> list[list[Splits]]:
    """The splits of every way to replay at each mini-batch, counted from 0: the updates that came before it."""
    return splits([recipe(rule) for rule in rules(name)], world(name, seed), sorted(updates))


def numbers(one: Splits) -> dict[str, float]:
    """Of one way at one mini-batch: J(target) - J(natural), the KL to the target, and the lengths of the parts of the
    gradient and of all together, relative to the natural gradient."""
    assert one.gradient is not None
    assert one.gradient.norm is not None
    found = {part: float(one.gradient.parts[part].norm or 0.0) for part in KEYS}
    kl_target = one.kl.total - one.kl.parts[TARGET].value
    return {"bias": -one.value.parts[TARGET].value, "kl_target": kl_target, **found, "whole": one.gradient.norm}


def accuracy(sim: Sim, updates: int) -> dict[str, dict[str, float]]:
    """Of every way, the variance and the mean squared error of a sampled mini-batch, as shares of ‖g‖² with g natural,
    and its progress as a share of that of as many responses from the target itself."""
    recipes = {rule: recipe(rule) for rule in rules("long")}
    shared = Shared(scene=scene_of(sim.model_copy(update={"staleness": updates}), list(recipes)))
    reference = shared.on_policy(recipes["disabled"].schedule)
    assert reference is not None
    found = {}
    for rule, one in recipes.items():
        of = shared.of(one)
        assert of is not None
        assert not of.sampled
        near = of.natural
        found[rule] = {"variance": near.variance / near.target, "mse": near.mse / near.target}
        found[rule]["progress"] = near.progress / reference.progress
    return found


def cell(name: str, seed: int, updates: Sequence[int]) -> dict[str, Any]:
    """One policy: every way to replay at each mini-batch."""
    sim = world(name, seed)
    found = splits([recipe(rule) for rule in rules(name)], sim, sorted(updates))
    told: dict[str, Any] = {"kl": found[0][0].kl.total}
    for s, row in zip(sorted(updates), found, strict=True):
        more = accuracy(sim, s) if name == "long" and s in SAMPLED else {}
        told[str(s)] = {rule: numbers(one) | more.get(rule, {}) for rule, one in zip(rules(name), row, strict=True)}
    return told


def _answer(plan: Plan) -> Answer:
    """Split what is not known yet, and read it."""
    updates = QUICK_UPDATES if plan.quick else UPDATES
    files = {(name, seed): f"{name}-s{seed}-{'-'.join(map(str, updates))}" for name in MARGIN for seed in plan.seeds}
    found = kept(plan.folder, {file: partial(cell, *which, updates) for which, file in files.items()})
    rows = [row for name in MARGIN for row in read_rows(name, [found[files[name, s]] for s in plan.seeds], updates)]
    return Answer(headline=headline(rows), rows=rows, measured={"lr": LR, "margin": MARGIN})


def read_rows(name: str, cells: Sequence[Mapping[str, Any]], updates: Sequence[int]) -> list[dict[str, Any]]:
    """Every way at every mini-batch, one a row: medians over policies, and the least and largest of the whole."""
    rows = []
    for s in updates:
        for rule in rules(name):
            of = {key: over(cells, str(s), rule, key) for key in cells[0][str(s)][rule]}
            row: dict[str, Any] = {"world": name, "updates": s, "replay": rule, "policies": len(cells)}
            row |= {"kl": median(over(cells, "kl"))}
            row |= {key: median(values) for key, values in of.items()}
            row |= {"size": median(of["bias"].abs())}
            rows.append(row | {"whole_low": float(of["whole"].min()), "whole_high": float(of["whole"].max())})
    return rows


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """What R3 takes away and what it adds, world by world, and from which mini-batch on it is less off."""
    parts = []
    for name in MARGIN:
        at = {(row["replay"], row["updates"]): row for row in rows if row["world"] == name}
        first = min(s for _, s in at)
        none, replayed = at["disabled", first], at["R3", first]
        later = sorted(s for rule, s in at if rule == "R3" and at["R3", s]["whole"] < at["disabled", s]["whole"])
        less = f"less off than no replay after {', '.join(map(str, later))} updates" if later else "never less off"
        parts.append(
            f"{name}: flips are {none['flips']:.2g} of the gradient and R3's target {replayed['target']:.2g}; R3 {less}"
        )
    return "; ".join(parts)


STUDY = Study(
    id="replay",
    question="What does each way to replay bring, and what does it cost?",
    source="arXiv 2512.01374 sec. 3.3, table 1; arXiv 2510.11370",
    rule="no run: the update of MiniRL without a clip, split by hybrid policies, on 8 policies at each mini-batch; a "
    "way brings what it takes from the part of the flips and costs the part of its altered target, both as shares of "
    "the natural gradient, medians over policies; it is less off where its whole error is. The variance is that of a "
    "mini-batch of 64 groups of 16 responses",
    answer=_answer,
)
