"""Which recipe does a regime ask for? A map over the mismatch of the engines, the length of responses, the updates a
rollout and the entropy, measured exactly.

A cell of the map is a regime of `firstorder.sim.trials.regime`; in it every option of `firstorder.sim.trials.options`
is rated at staleness 0, ..., 7. A cell that no pair of engines fits, since so many flips cost more than that KL, is
left out. Cells that are there are found again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from firstorder.core.runs.files import to_json
from firstorder.sim.config import Numerics
from firstorder.sim.trials.atlas import BATCH, GROUP, GROUPS, UPDATES, parse
from firstorder.sim.trials.course import step_sizes
from firstorder.sim.trials.options import OPTIONS
from firstorder.sim.trials.regime import Regime, fits, fitted, measured

from .kept import kept
from .study import Answer, Plan, Study

KLS = (3e-4, 1.5e-3, 5e-3, 2e-2)  # nats a token; 1.5e-3 is published
FLIPS = (0.01, 0.03, 0.1, 0.3)  # of (token, layer); 0.1 is published
HORIZONS = (8192, 512, 32768)
RIGHTS = (2, 4)  # of 8 tokens: about 0.7 and 1.3 nats a token
STEPS = (1e-4, 1e-3)  # nats a token
RATES, UPDATED = (5e-4, 2e-3), 24  # AdamW's, and updates, whose sizes the steps stand for
VARIED = ((4, 1e-4), (2, 1e-3))  # right tokens and steps that are tried at one length alone
SEEDS = 6


def regimes(quick: bool) -> list[Regime]:
    """The cells that are tried."""
    if quick:
        grid = [(RIGHTS[0], STEPS[0], 512, kl, flips) for kl, flips in product(KLS[1:3], FLIPS[1:3])]
    else:
        engines = [*product(KLS, FLIPS)]
        grid = [(RIGHTS[0], STEPS[0], horizon, *pair) for horizon in HORIZONS for pair in engines]
        grid += [(right, step, HORIZONS[0], *pair) for right, step in VARIED for pair in engines]
    return [
        Regime(kl=kl, flips=flips, horizon=horizon, right=right, step=step) for right, step, horizon, kl, flips in grid
    ]


def cell(regime: Regime, seeds: range) -> dict[str, Any]:
    """What is kept of a regime, plain numbers; `fits` is whether its engines exist, and if not there is no more."""
    engines = fitted(regime, seeds)
    return asdict(regime) | {
        "kl_found": engines.kl,
        "flips_found": engines.flip_rate,
        "router_scale": engines.router_scale,
        "head_scale": engines.head_scale,
        "fits": fits(engines),
        **(numbers(regime, engines.numerics, seeds, max(UPDATES)) if fits(engines) else {}),
    }


def numbers(regime: Regime, numerics: Numerics, seeds: range, steps: int) -> dict[str, Any]:
    """What is measured in a regime: lists over N up to `steps`, then over options, `score` of each seed and the others
    means; `score_4` and `score_64` are for groups of these sizes."""
    recipes = [each.recipe(GROUP) for each in OPTIONS.values()]
    found = measured(regime, numerics, seeds, recipes, GROUPS, steps)
    rated, place = found.rated, GROUPS.index(GROUP)
    counts = [n for n in UPDATES if n <= steps]

    def means(x: Tensor) -> list[Any]:
        """Means over the mini-batches of a rollout, of N of them, and over members."""
        return [_plain(x[:n].mean((0, -1))) for n in counts]

    def score(group: int) -> Tensor:
        at = GROUPS.index(group)
        return rated.cosine[:, at] / (1 + rated.noise[:, at] / BATCH).sqrt()

    return {
        "kl_replayed": found.kl_replayed,
        "entropy": found.entropy,
        "j_pi": found.j_pi,
        "j_mu": found.j_mu,
        "moved": list(found.moved),
        "flipped": list(found.flipped),
        "error": means(rated.error[:, place]),
        "cosine": means(rated.cosine[:, place]),
        "ess": means(rated.ess),
        "sequence_ess": means(rated.sequence_ess),
        "score": [_plain(score(GROUP)[:n].mean(0)) for n in counts],
        **{f"score_{group}": means(score(group)) for group in GROUPS if group != GROUP},
    }


def _plain(x: Tensor) -> Any:
    return x.tolist()


def _answer(plan: Plan) -> Answer:
    """Measure the cells that are missing, and choose in each."""
    seeds = range(plan.seeds.start, plan.seeds.start + min(SEEDS, len(plan.seeds)))
    cells = kept(plan.folder / "cells", {str(regime): partial(cell, regime, seeds) for regime in regimes(plan.quick)})
    found = answer(list(cells.values()), seeds)
    return replace(found, measured=found.measured | {"steps": _sizes(seeds)})


def _sizes(seeds: range) -> dict[str, float]:
    """Median KL(π_old ‖ π_θ) of the first updates, nats a token, by learning rate: what `STEPS` stand for."""
    regime = Regime(kl=KLS[1], flips=FLIPS[2], horizon=HORIZONS[0], right=RIGHTS[0], step=STEPS[0])
    members = torch.arange(seeds.start, seeds.stop)
    return {f"{lr:g}": float(step_sizes(regime.sim(seeds), members, lr, UPDATED).median()) for lr in RATES}


def answer(cells: Sequence[Mapping[str, Any]], seeds: range) -> Answer:
    """What is read off the cells."""
    there = [each for each in cells if each["fits"]]
    shipped = {
        "seeds": list(seeds),
        "options": list(OPTIONS),
        "cells": [rounded(each) for each in there],
    }
    rows = parse(to_json(shipped), "the map").rows()
    picks = sorted({row["advice"] for row in rows})
    return Answer(
        headline=f"{len(there)} of {len(cells)} cells exist; the advice is one of: {'; '.join(picks)}",
        rows=rows,
        measured={"map": shipped, "left_out": [dict(each) for each in cells if not each["fits"]]},
    )


SCALES = ("router_scale", "head_scale")
DIGITS = 10  # after the point, or of a number below 1e-3: what is shipped is what is measured to 1e-9


def rounded(x: Any) -> Any:
    """Numbers as they are shipped; engines keep every digit, since what flips hangs on it."""
    if isinstance(x, float) and math.isfinite(x) and x:
        return round(x, DIGITS) if abs(x) >= 1e-3 else float(f"{x:.{DIGITS}g}")
    if isinstance(x, Mapping):
        return {key: value if key in SCALES else rounded(value) for key, value in x.items()}
    return [rounded(each) for each in x] if isinstance(x, list) else x


STUDY = Study(
    id="map",
    question="Which replay, correction and clip does a regime ask for?",
    source="arXiv 2512.01374 sec. 5: none at N = 1, R2 at N = 2, R3 at N = 4 and 8",
    rule=f"in every cell each option is rated by the cosine of a sampled update, {BATCH} groups of {GROUP} responses, "
    "and the natural gradient, the mean over the N mini-batches of a rollout; options within one standard error of "
    "the best, paired over seeds, or within 1% of it, are tied, and of these the one with the fewest parts is chosen",
    answer=_answer,
)
