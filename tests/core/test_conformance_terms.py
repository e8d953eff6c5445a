"""The golden vectors of the terms of a loss: what plain arithmetic makes, what a pencil makes, and what a recipe adds
to the weights of its method."""

import json
import math
import runpy
from fractions import Fraction as F
from pathlib import Path
from types import SimpleNamespace

import pytest

from firstorder.core.conformance import additive, vectors
from firstorder.core.conformance.answer import expected_leaves, load, numbers
from firstorder.core.conformance.batches import CASES
from firstorder.core.conformance.check import compare, compared, furthest
from firstorder.core.conformance.shipped import shipped
from firstorder.core.errors import DataError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.surrogate import token_weights
from firstorder.core.method.term_kinds import ESTIMATORS, TERMS
from firstorder.core.method.terms import FUNCTIONS, with_terms
from firstorder.core.settings.toml import build, read
from firstorder.core.settings.toml import shipped as recipes

VECTORS = shipped()
EXPECTED = VECTORS["expected"]
EXACT = 1e-12
plain = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "plain_terms.py")))


def apart(got, expected):
    """The largest distance of two nested lists of numbers, relative where they are above 1."""
    rows = zip(numbers(got), numbers(expected), strict=True)
    return max(abs(one - other) / max(1.0, abs(other)) for (_, one), (_, other) in rows)


@pytest.mark.parametrize("name", VECTORS["terms"])
def test_plain_arithmetic_from_the_papers_makes_the_same(name):
    settings = VECTORS["terms"][name]["settings"]
    for case, entry in EXPECTED["terms"][name].items():
        found = plain.outputs(VECTORS["cases"][case]["inputs"], settings)
        for output, numbers_of in found.items():
            assert apart(numbers_of, entry[output]) < EXACT, (case, output)


# The case `rationals`, response by response, from the probabilities that core/conformance/batches.py writes down:
#   theta/ref   2, 1/2, 1, 5/4      | 1/2, 5/4, 4/3, 3/4   | 3/2, 1     | 3/2, -, 5/6, 1
#   theta/mu    2, 1/2, 5/4, 25/8   | 1/5, 5/4, 5/8, 9/4   | 9/8, 15/16 | 15/16, -, 1, 3/4
#   theta/old   2, 1/2, 1, 5/4      | 1/2, 5/4, 5/6, 9/10  | 9/8, 1     | 5/6, -, 1, 6/7
# 13 tokens in 4 responses: a token mean divides by 13/4.
THETA_REF = "2 1/2 1 5/4 | 1/2 5/4 4/3 3/4 | 3/2 1 1 1 | 3/2 1 5/6 1"
THETA_MU = "2 1/2 5/4 25/8 | 1/5 5/4 5/8 9/4 | 9/8 15/16 1 1 | 15/16 1 1 3/4"
THETA_OLD = "2 1/2 1 5/4 | 1/2 5/4 5/6 9/10 | 9/8 1 1 1 | 5/6 1 1 6/7"
HAND = {
    # w = -1
    "reference-k1": "-1 -1 -1 -1 | -1 -1 -1 -1 | -1 -1 0 0 | -1 0 -1 -1",
    # w = ref/theta - 1
    "reference-k3": "-1/2 1 0 -1/5 | 1 -1/5 -1/4 1/3 | -1/3 0 0 0 | -1/3 0 1/5 0",
    # the same over 4, 4, 2 and 3 tokens
    "reference-k3-length": "-1/8 1/4 0 -1/20 | 1/4 -1/20 -1/16 1/12 | -1/6 0 0 0 | -1/9 0 1/15 0",
    # times 4/13
    "reference-k3-token-mean": "-2/13 4/13 0 -4/65 | 4/13 -4/65 -1/13 4/39 | -4/39 0 0 0 | -4/39 0 4/65 0",
    # over 1024
    "reference-k3-constant": "-1/2048 1/1024 0 -1/5120 | 1/1024 -1/5120 -1/4096 1/3072 | -1/3072 0 0 0"
    " | -1/3072 0 1/5120 0",
    # a bonus weighs the gradient of every entropy
    "entropy": "1 1 1 1 | 1 1 1 1 | 1 1 0 0 | 1 0 1 1",
    "entropy-length": "1/4 1/4 1/4 1/4 | 1/4 1/4 1/4 1/4 | 1/2 1/2 0 0 | 1/3 0 1/3 1/3",
    "entropy-token-mean": "4/13 4/13 4/13 4/13 | 4/13 4/13 4/13 4/13 | 4/13 4/13 0 0 | 4/13 0 4/13 4/13",
}


def fractions(text):
    return [[F(x) for x in row.split()] for row in text.split("|")]


def made(function, *texts):
    """A function of the fractions of some texts, place by place."""
    rows = [zip(*row, strict=True) for row in zip(*map(fractions, texts), strict=True)]
    return [[function(*map(float, place)) for place in row] for row in rows]


LOGS = {
    "reference-k2": made(lambda d: -math.log(d), THETA_REF),
    "reference-unbiased": made(lambda d, r: -r * math.log(d), THETA_REF, THETA_MU),
    "squared-theta-mu": made(lambda r: -2 * math.log(r), THETA_MU),
    "squared-theta-old": made(lambda r: -2 * math.log(r), THETA_OLD),
}


@pytest.mark.parametrize("name", VECTORS["terms"])
def test_the_weights_of_rationals_are_those_of_a_pencil(name):
    weight = LOGS[name] if name in LOGS else made(float, HAND[name])
    entry = EXPECTED["terms"][name]["rationals"]
    assert apart(entry["weight"], weight) < EXACT
    assert apart(entry["gradient"], [[-w / 4 for w in row] for row in weight]) < EXACT


def test_the_values_of_rationals_are_those_of_a_pencil():
    # the first response: theta/ref is 2, 1/2, 1, 5/4 and theta/mu 2, 1/2, 5/4, 25/8
    two, quarter = math.log(2), math.log(5 / 4)
    k3 = [two - 1 / 2, 1 - two, 0, quarter - 1 / 5]
    by_hand = {
        "reference-k1": [two, -two, 0, quarter],
        "reference-k2": [two**2 / 2, two**2 / 2, 0, quarter**2 / 2],
        "reference-k3": k3,
        "reference-unbiased": [2 * k3[0], k3[1] / 2, 0, 25 / 8 * k3[3]],
        "squared-theta-old": [two**2, two**2, 0, quarter**2],
        "entropy": [1, 1.25, 0.75, 0.5],
    }
    found = {name: EXPECTED["terms"][name]["rationals"]["value"][0] for name in by_hand}
    assert {name: row for name, row in by_hand.items() if apart(found[name], row) > EXACT} == {}


def test_every_term_and_estimator_of_a_sampled_token_and_every_divisor_has_a_row():
    every = additive.terms()
    assert set(additive.KEYS) == set(TERMS) == {term.kind for term in every}
    estimators = {term.settings.get("terms.reference_estimator") for term in every} - {None}
    assert estimators == set(FUNCTIONS) == set(ESTIMATORS) - {"full"}  # which is a sum over the vocabulary
    divisors = {term.settings["aggregation.kind"] for term in every if term.kind == "reference_kl"}
    assert divisors == {method["settings"]["aggregation.kind"] for method in VECTORS["methods"].values()}


def test_every_term_of_every_recipe_has_a_row_with_its_coefficient():
    every = {name: build(Recipe, read(name)) for name in recipes()}
    having = {(name, kind): getattr(recipe.terms, kind) for name, recipe in every.items() for kind in TERMS}
    found = {(name, term.kind): coefficient for term in additive.terms() for name, coefficient in term.recipes.items()}
    assert found == {key: coefficient for key, coefficient in having.items() if coefficient}


@pytest.mark.parametrize("name", ["grpo-kl", "dppo-tv-squared"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_recipe_is_its_method_and_its_coefficient_times_its_term(name, case):
    recipe, stats = build(Recipe, read(name)), vectors.stats_of(case)
    (method,) = [key for key, method in VECTORS["methods"].items() if name in method["recipes"]]
    ((term, beta),) = [(key, one["recipes"][name]) for key, one in VECTORS["terms"].items() if name in one["recipes"]]
    parts = [EXPECTED["methods"][method][case.name]["weight"], EXPECTED["terms"][term][case.name]["weight"]]
    expected = [[w + beta * s for w, s in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
    found = with_terms(token_weights(stats, recipe).weight, stats, recipe)
    assert apart(found.tolist(), expected) < EXACT


def test_a_term_asks_nothing_off_the_mask_nor_of_a_token_without_a_score():
    for name, entry in EXPECTED["terms"].items():
        for case in CASES:
            inputs, found = case.inputs(), entry[case.name]
            for output in ("value", "weight", "gradient"):
                for row, mask in zip(found[output], inputs["mask"], strict=True):
                    assert all(x == 0 for x, on in zip(row, mask, strict=True) if not on), (name, case.name, output)
        weight = entry["impossible_token"]["weight"]
        bonus = VECTORS["terms"][name]["by"] == "entropy"
        assert [weight[0][1] != 0, weight[1][2] != 0] == [bonus, bonus], name


def test_log_ratios_past_twenty_are_among_the_extremes():
    k2 = EXPECTED["terms"]["reference-k2"]["extremes"]["weight"]
    assert (k2[1][0], k2[2][0], k2[3][1]) == (20, -20, 20)


def answered(tmp_path, change):
    tree = {"schema": VECTORS["schema"], "version": VECTORS["version"], "framework": "other"}
    tree["answers"] = json.loads(json.dumps(EXPECTED))
    change(tree["answers"])
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(tree))
    return path


def test_answers_without_terms_are_compared_as_they_are(tmp_path):
    found = compare(load(answered(tmp_path, lambda tree: tree.pop("terms")), VECTORS), VECTORS)
    assert furthest(found) is None
    assert {row.path[0] for row in found} == set(EXPECTED) - {"terms"}
    left = {path for path, _ in expected_leaves(EXPECTED)} - {row.path for row in found}
    assert {path[0] for path in left} == {"terms"}


def test_a_program_with_the_other_direction_of_the_kl_differs_and_is_told_where(tmp_path):
    def takes_k2_for_k3(tree):
        tree["terms"] = {"reference-k3": {"masks": tree["terms"]["reference-k2"]["masks"]}}

    every = compare(load(answered(tmp_path, takes_k2_for_k3), VECTORS), VECTORS)
    found = [row for row in every if row.path[0] == "terms"]
    assert [(row.subject, row.case, row.output) for row in found] == [
        ("reference-k3", "masks", output) for output in ("value", "weight", "gradient")
    ]
    assert all(row.worst for row in found)


def test_a_difference_of_a_term_says_where():
    worst = compared(("terms", "entropy", "pair", "gradient"), [[0.5, 0.5]], [[0.5, -0.5]], 1e-7).worst
    assert str(worst) == "gradient of term entropy, case pair, response 0, token 1: got 0.5, expected -0.5"


def test_a_term_that_the_vectors_do_not_know_is_refused_in_a_line(tmp_path):
    path = answered(tmp_path, lambda tree: tree["terms"].update({"reference-k4": {}}))
    with pytest.raises(DataError, match=r"answers/terms has no term 'reference-k4'; did you mean 'reference-k"):
        load(path, VECTORS)
