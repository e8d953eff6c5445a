"""Which recipe does a regime ask for? A map over the mismatch of the engines, the length of responses, the updates a
rollout and the entropy, measured exactly.

A cell of the map is a regime of `firstorder.sim.trials.regime`; in it every option of `firstorder.sim.trials.options`
is rated at staleness 0, ..., 7. A cell that no pair of engines fits, since so many flips cost more than that KL, is
left out. Cells that are there are found again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from torch import Tensor

from firstorder.core import progress
from firstorder.core.runs.files import to_json, write_whole
from firstorder.sim.trials.atlas import BATCH, GROUP, GROUPS, LARGE, UPDATES, parse
from firstorder.sim.trials.options import OPTIONS
from firstorder.sim.trials.regime import Found, Regime, measured

from .study import Answer, Plan, Study

KLS = (3e-4, 1.5e-3, 5e-3, 2e-2)  # nats a token; 1.5e-3 is published
FLIPS = (0.01, 0.03, 0.1, 0.3)  # of (token, layer); 0.1 is published
HORIZONS = (8192, 512, 32768)
RIGHTS = (2, 4)  # of 8 tokens: about 0.7 and 1.3 nats a token
STEPS = (1e-4, 1e-3)  # nats a token
FITS = 0.25  # |log| by which the KL or the flips of a cell may miss what was wanted
SEEDS = 6


def regimes(quick: bool) -> list[Regime]:
    """The cells that are tried."""
    if quick:
        grid = product(RIGHTS[:1], (512,), KLS[1:3], FLIPS[1:3], STEPS[:1])
    else:
        engines = [*product(HORIZONS, KLS, FLIPS)]
        varied = ((RIGHTS[0], STEPS[0]), (RIGHTS[1], STEPS[0]), (RIGHTS[0], STEPS[1]))
        grid = ((right, *each, step) for right, step in varied for each in engines)
    return [Regime(kl=kl, flips=flips, horizon=t, right=right, step=step) for right, t, kl, flips, step in grid]


def cell(regime: Regime, seeds: range, steps: int = max(UPDATES)) -> dict[str, Any]:
    """What is kept of a regime, plain numbers; `fits` is whether its engines exist."""
    found = measured(regime, seeds, [each.recipe(GROUP) for each in OPTIONS.values()], GROUPS, steps, FITS)
    return {
        "kl": regime.kl,
        "flips": regime.flips,
        "horizon": regime.horizon,
        "right": regime.right,
        "step": regime.step,
        "kl_found": found.engines.kl,
        "flips_found": found.engines.flip_rate,
        "router_scale": found.engines.router_scale,
        "head_scale": found.engines.head_scale,
        "fits": found.fits,
    } | (_numbers(found) if found.fits else {})


def _numbers(found: Found) -> dict[str, Any]:
    assert found.rated is not None
    rated, place = found.rated, GROUPS.index(GROUP)
    counts = [n for n in UPDATES if n <= len(rated.cosine)]

    def steps(x: Tensor) -> list[Any]:
        """Means over the mini-batches of a rollout, of N of them, and over members."""
        return [_plain(x[:n].mean((0, -1))) for n in counts]

    def score(group: int, batch: float) -> Tensor:
        at = GROUPS.index(group)
        return rated.cosine[:, at] / (1 + rated.noise[:, at] / batch).sqrt()

    return {
        "kl_replayed": found.kl_replayed,
        "entropy": found.entropy,
        "j_pi": found.j_pi,
        "j_mu": found.j_mu,
        "moved": list(found.moved),
        "flipped": list(found.flipped),
        "error": steps(rated.error[:, place]),
        "cosine": steps(rated.cosine[:, place]),
        "ess": steps(rated.ess),
        "sequence_ess": steps(rated.sequence_ess),
        "score": [_plain(score(GROUP, BATCH)[:n].mean(0)) for n in counts],
        "score_large": steps(score(GROUP, LARGE)),
        **{f"score_{group}": steps(score(group, BATCH)) for group in GROUPS if group != GROUP},
    }


def _plain(x: Tensor) -> Any:
    return x.tolist()


def _answer(plan: Plan) -> Answer:
    """Measure the cells that are missing, and choose in each."""
    seeds = range(plan.seeds.start, plan.seeds.start + min(SEEDS, len(plan.seeds)))
    folder = plan.folder / "cells"
    folder.mkdir(exist_ok=True)
    cells = []
    for regime in progress.steps("cells", regimes(plan.quick)):
        file = folder / f"{regime}.json"
        if not file.is_file():
            write_whole(file, to_json(cell(regime, seeds)))
        cells.append(json.loads(file.read_text(encoding="utf-8")))
    return answer(cells, seeds)


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


DIGITS = 10  # after the point, or of a number below 1e-3: what is shipped is what is measured to 1e-9


def rounded(x: Any) -> Any:
    """Numbers as they are shipped."""
    if isinstance(x, float) and math.isfinite(x) and x:
        return round(x, DIGITS) if abs(x) >= 1e-3 else float(f"{x:.{DIGITS}g}")
    if isinstance(x, Mapping):
        return {key: rounded(value) for key, value in x.items()}
    return [rounded(each) for each in x] if isinstance(x, list) else x


STUDY = Study(
    id="map",
    question="Which replay, correction and clip does a regime ask for?",
    source="arXiv 2512.01374 sec. 5: none at N = 1, R2 at N = 2, R3 at N = 4 and 8",
    rule=f"in every cell each option is rated by the cosine of a sampled update, {BATCH} groups of {GROUP} responses, and "
    "the natural gradient, the mean over the N mini-batches of a rollout; options within two standard errors of the best, "
    "paired over seeds, are tied, and of these the one with the fewest parts is chosen",
    answer=_answer,
)
