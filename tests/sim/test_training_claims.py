import json

import numpy as np
import pytest
import torch
from scipy import stats

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read
from firstorder.sim.claims.training import TRAINING, findings, predictors
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.measure import measure
from firstorder.sim.trials import runs
from firstorder.sim.trials.budget import Budget
from firstorder.sim.trials.calibrate import calibrate, mismatch
from firstorder.sim.trials.compare import every, final, interquartile_mean, lead, over_conditions
from firstorder.sim.trials.runs import ON_POLICY, Condition, Runs, conditions
from firstorder.sim.trials.statistics import share

SEEDS = 16
HERE = Condition(discrepancy="wide", updates=1, lr=0.003)


def series(path, spread=0.01, seeds=SEEDS):
    """Runs whose J follows a path, a little apart."""
    jitter = spread * torch.linspace(-1, 1, seeds, dtype=torch.float64)[:, None]
    j = torch.tensor(path, dtype=torch.float64) + jitter
    return {"exact/j_pi": j, "kl": j, "update/entropy": 1 - j, "route/flip_rate": 0 * j}


GOOD = [0.3, 0.5, 0.7, 0.9, 0.9, 0.9]
WORSE = [0.3, 0.5, 0.6, 0.7, 0.7, 0.7]
GONE = [0.3, 0.6, 0.8, 0.2, 0.1, 0.1]


def test_the_interquartile_mean_is_that_of_the_middle_half():
    values = torch.tensor([100.0, 1, 2, 3, 4, 5, 6, -50], dtype=torch.float64)
    assert interquartile_mean(values).value == pytest.approx(3.5)


def test_a_lead_is_paired_by_seed():
    found = lead(series(GOOD, spread=0.3), series(WORSE, spread=0.3))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))


def test_the_interval_of_a_share_is_the_exact_binomial_one():
    found = share(torch.tensor([True] * 3 + [False] * 13))
    expected = stats.binomtest(3, 16).proportion_ci(method="exact")
    assert (found.value, found.low, found.high) == pytest.approx((3 / 16, expected.low, expected.high))


@pytest.mark.parametrize(
    ("judge", "cells", "expected"),
    [
        (findings._most_stable, {"minirl": GOOD, "minirl-no-is": WORSE, "minirl-r3": GONE}, True),
        (findings._most_stable, {"minirl": WORSE, "minirl-no-is": GONE, "minirl-r3": GOOD}, False),
        (findings._needs_is, {"minirl": GOOD, "minirl-no-is": GONE}, True),
        (findings._needs_is, {"minirl": GOOD, "minirl-no-is": WORSE}, False),
        (findings._needs_is, {"minirl": GONE, "minirl-no-is": GONE}, None),
        (findings._stale, dict.fromkeys(("minirl-no-clip", "minirl-no-is"), GOOD) | {"reinforce-n64": GONE}, True),
        (findings._stale, dict.fromkeys(("minirl-no-clip", "minirl-no-is", "reinforce-n64"), GOOD), False),
        (findings._length_norm, {"minirl": GOOD, "minirl-length-norm": WORSE}, True),
        (findings._length_norm, {"minirl": WORSE, "minirl-length-norm": GOOD}, False),
        (findings._length_norm, {"minirl": GOOD, "minirl-length-norm": GONE}, False),
    ],
)
def test_a_judge_follows_its_rule(judge, cells, expected):
    assert judge(HERE, {name: series(path) for name, path in cells.items()})[0] is expected


@pytest.mark.parametrize(("n", "best"), [(2, "minirl-r2"), (8, "minirl-r3")])
def test_off_policy_judges_take_the_replay_of_the_schedule(n, best):
    here = Condition(discrepancy="wide", updates=n, lr=0.003)
    cells = {name: series(GOOD if name == best else WORSE) for name in runs.OFF_POLICY}
    assert findings._needs_both(here, cells)[0] is True
    assert findings._r2_or_r3(here, cells)[0] is True
    other = Condition(discrepancy="wide", updates=10 - n, lr=0.003)
    assert findings._r2_or_r3(other, cells)[0] is False


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ([True, True], "reproduced"),
        ([False, False], "not reproduced"),
        ([True, False], "inconclusive"),
        ([True, None], "inconclusive"),
        ([], "inconclusive"),
    ],
)
def test_a_verdict_needs_every_condition(states, verdict):
    places = {Condition(discrepancy="wide", updates=1, lr=lr): state for lr, state in enumerate(states)}
    assert over_conditions(places)[0] == verdict


def test_unsettled_leads_settle_nothing():
    near = lead(series(GOOD), series(GOOD))
    assert every([near]) is None


@pytest.mark.parametrize("seed", range(3))
def test_the_area_is_the_chance_that_a_fallen_run_ranks_higher(seed):
    draw = np.random.default_rng(seed)
    values, labels = draw.integers(0, 5, 40).astype(float), draw.integers(0, 2, 40).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in values[labels == 1] for b in values[labels == 0]]
    assert float(predictors.area(values, labels)) == pytest.approx(np.mean(pairs))
    assert np.isnan(predictors.area(values, 0 * labels))


def test_a_predictor_that_knows_wins_on_the_held_out_seeds(monkeypatch):
    falls = torch.arange(SEEDS) % 4 < 2
    noise = torch.rand(SEEDS, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = torch.where(falls[:, None], torch.tensor(GONE), torch.tensor(GOOD)).double()
    cell = dict.fromkeys(predictors.PREDICTORS, noise) | {"exact/j_pi": path}
    cell[predictors.COHERENCE] = falls[:, None] + 0 * path
    found = Runs(series={HERE: {"minirl": cell, "minirl-r3": cell}}, published=None)
    monkeypatch.setattr(predictors, "runs", lambda budget: found)
    outcome = predictors._foretells(Budget(policies=SEEDS, draws=1, first_seed=0))
    assert outcome.verdict == "reproduced"
    assert outcome.measured["collapsed"] == 2 * int(falls.sum())
    assert outcome.measured[predictors.COHERENCE]["dangerous"] == "high"
    assert outcome.measured[predictors.COHERENCE]["area"]["value"] == 1.0


def test_a_run_that_collapsed_at_once_foretells_nothing(monkeypatch):
    seeds = torch.arange(SEEDS)
    path = torch.where(
        (seeds % 4 < 2)[:, None], torch.tensor([0.9, 0.1, 0.1, 0.1, 0.1, 0.1]), torch.tensor(GOOD)
    ).double()
    path[seeds % 4 == 2] = torch.tensor(GONE).double()
    cell = dict.fromkeys(predictors.PREDICTORS, path) | {"exact/j_pi": path}
    monkeypatch.setattr(predictors, "runs", lambda budget: Runs(series={HERE: {"minirl": cell}}, published=None))
    measured = predictors._foretells(Budget(policies=SEEDS, draws=1, first_seed=0)).measured
    assert (measured["runs"], measured["collapsed"]) == (8, 4)


def test_every_recipe_of_every_condition_can_be_trained():
    for quick in (True, False):
        budget = Budget(policies=4 if quick else 16, draws=1, first_seed=0)
        wanted = runs.cells(budget, Numerics(kind="noise"))
        assert len({cell.name for cell in wanted.values()}) == len(wanted)
        assert not [cell.name for cell in wanted.values() if "." in cell.name]
        for (condition, _), cell in wanted.items():
            schedule = cell.recipe.schedule
            assert schedule.steps * schedule.minibatches == runs.UPDATES[quick] * condition.longer
    assert {n for c in conditions(quick=False) for n in [c.updates]} == {1, 2, 4, 8, 64}


def test_the_mismatch_is_what_measure_says():
    sim = Sim(numerics=Numerics(kind="noise", router_scale=0.2, expert_scale=0.1))
    divergence, rate = mismatch(sim, torch.tensor([0]))
    result = measure(build(Recipe, read("minirl")), sim)
    assert (float(divergence), float(rate)) == pytest.approx((result["kl_mu_old"], result["flip_rate"]), rel=1e-12)


def test_two_knobs_find_a_mismatch_that_two_knobs_made():
    sim, seeds = Sim(horizon=3), torch.arange(16)
    made = Numerics(kind="noise", router_scale=0.3, expert_scale=0.05)
    divergence, rate = (float(x.mean()) for x in mismatch(sim.model_copy(update={"numerics": made}), seeds))
    found = calibrate(sim, seeds, wanted_kl=divergence, wanted_flips=rate)
    assert max(abs(gap) for gap in found.residuals) < 0.05
    assert found.numerics.router_scale == pytest.approx(0.3, rel=0.25)


def test_training_claims_run_and_are_found_again(monkeypatch, tmp_path):
    here = Condition(discrepancy="wide", updates=1, lr=0.01)
    monkeypatch.setattr(runs, "conditions", lambda *, quick: {here: ON_POLICY})
    monkeypatch.setattr(runs, "UPDATES", {True: 4})
    monkeypatch.setattr(runs, "EVALUATIONS", 4)
    budget = Budget(policies=2, draws=1, first_seed=5, folder=tmp_path)
    runs.runs.cache_clear()
    found = runs.runs(budget)
    assert found.series[here]["minirl"]["exact/j_pi"].shape == (2, 4)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert len(stamps) == len(ON_POLICY)
    runs.runs.cache_clear()
    again = runs.runs(budget)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")} == stamps
    torch.testing.assert_close(final(again.series[here]["minirl"]), final(found.series[here]["minirl"]), rtol=0, atol=0)
    on_policy = next(claim for claim in TRAINING if claim.id == "training-on-policy")
    measured = on_policy.check(budget).measured["conditions"][str(here)]
    assert set(measured["recipes"]) == set(ON_POLICY)
    json.dumps(measured)
