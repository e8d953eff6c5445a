import math
from dataclasses import replace

import pytest
import torch

from firstorder.core.runs.files import to_json
from firstorder.sim.claims import CLAIMS, FULL, QUICK, Budget, drift, identities, parts, targets, worlds
from firstorder.sim.claims.claim import EXACT, theorem
from firstorder.sim.claims.ensemble import ensemble
from firstorder.sim.exact import objectives

TINY = Budget(policies=2, draws=1, first_seed=41)
BY_ID = {claim.id: claim for claim in CLAIMS}
THEOREMS = [claim.id for claim in CLAIMS if claim.kind == "theorem"]


def scaled(function, factor):
    return lambda *args: function(*args) * factor


def moved_error(function):
    def values(scene, mode):
        found = function(scene, mode)
        return replace(found, error=found.error * (1 + 1e-6))

    return values


def bare_only(function):
    return lambda scene, recipe: function(scene, recipe) * (1.001 if recipe.advantage.baseline == "none" else 1.0)


def in_the_graph(function, factor):
    return lambda scene, recipe: function(scene, recipe) * (1.0 if scene.world.exhaustive else factor)


def r2_only(function):
    return lambda scene, mode: function(scene, mode) * (1.0 if mode == "disabled" else 1 + 1e-9)


BROKEN = {
    "value-identity": (identities, "values", moved_error),
    "sequence-gradient": (identities, "direction", lambda f: scaled(f, 1 + 1e-6)),
    "gradient-gap": (identities, "gradient", lambda f: scaled(f, 1 + 1e-6)),
    "two-errors": (identities, "gradient", lambda f: scaled(f, 1 - 1e-6)),
    "baseline": (identities, "ratios", lambda f: lambda *args: f(*args) ** 1.001),
    "group-mean": (identities, "update", bare_only),
    "factorisation": (targets, "ratios", lambda f: scaled(f, 1 + 1e-6)),
    "table-1": (targets, "gradient", r2_only),
    "replay-bias": (targets, "ratios", lambda f: lambda *args: f(*args) ** 1.001),
    "split": (parts, "update", lambda f: scaled(f, 1 + 1e-6)),
    "worlds": (worlds, "update", lambda f: in_the_graph(f, 1 + 1e-9)),
    "difference": (objectives, "value", lambda f: scaled(f, 1 + 1e-6)),
    "drift": (drift, "kl", lambda f: scaled(f, 1 + 1e-6)),
    "bounds": (targets, "bounds", lambda f: lambda *args: {n: 1e-6 * b for n, b in f(*args).items()}),
}


def test_every_claim_has_a_name_of_its_own_a_statement_a_source_and_a_rule():
    assert len(BY_ID) == len(CLAIMS)
    assert len({claim.statement for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.statement
        assert claim.source
        assert claim.rule
        assert claim.kind in ("theorem", "empirical")
    assert set(THEOREMS) == set(BROKEN)


@pytest.mark.parametrize("name", THEOREMS)
def test_a_theorem_holds_for_other_policies(name):
    outcome = BY_ID[name].check(TINY)
    assert outcome.verdict == "holds"
    assert outcome.headline
    assert "null" not in to_json(outcome.measured)


@pytest.mark.parametrize("name", THEOREMS)
def test_a_theorem_fails_once_one_of_its_sides_is_wrong(name, monkeypatch):
    module, attribute, change = BROKEN[name]
    monkeypatch.setattr(module, attribute, change(getattr(module, attribute)))
    assert BY_ID[name].check(TINY).verdict == "fails"


@pytest.mark.parametrize("name", ["r3-value-order", "no-is-one-step", "length-norm-floor", "flips-value-order"])
def test_an_empirical_claim_gets_a_verdict_with_its_numbers(name):
    outcome = BY_ID[name].check(TINY)
    assert outcome.verdict in ("reproduced", "not reproduced", "inconclusive")
    assert outcome.headline
    assert outcome.measured


def test_a_verdict_is_the_same_on_every_run():
    first, again = (BY_ID["length-norm-floor"].check(TINY) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("broken", [2 * EXACT, math.inf, math.nan])
@pytest.mark.parametrize("first", [True, False])
def test_a_theorem_tolerates_rounding_and_nothing_else(broken, first):
    sides = {"a": broken, "b": 0.0} if first else {"b": 0.0, "a": broken}
    assert theorem(sides).verdict == "fails"
    assert theorem({"a": EXACT / 2, "b": 0.0}).verdict == "holds"


def test_budgets_report_on_seeds_that_nothing_was_chosen_on():
    for budget in (FULL, QUICK):
        assert budget.first_seed >= 1000
        assert budget.policies >= 10


def test_an_ensemble_is_policies_times_draws():
    group = ensemble(Budget(policies=3, draws=2, first_seed=10))
    assert group.policies == 3
    assert group.seeds.tolist() == [10, 10, 11, 11, 12, 12]
    assert group.owner.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(group.noise.unique()) == 6
    assert group.per_policy(torch.arange(6)).tolist() == [1.0, 5.0, 9.0]
    weights = group.weights["head"]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_deviations_are_relative_to_the_norm_of_the_second_side():
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.5], [2.0, 0.0]])
    assert identities.off(a, b) == pytest.approx(0.5)
