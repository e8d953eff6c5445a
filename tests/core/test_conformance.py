"""The golden vectors are what the code makes, what plain arithmetic makes, and, where fractions reach, what a pencil
makes."""

import hashlib
import json
import math
import runpy
from fractions import Fraction as F
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from firstorder.core.conformance import vectors
from firstorder.core.conformance.answer import expected_leaves, numbers
from firstorder.core.conformance.batches import CASES
from firstorder.core.conformance.methods import methods
from firstorder.core.conformance.shipped import shipped, source
from firstorder.core.method import parts
from firstorder.core.method.surrogate import token_weights
from firstorder.core.settings.toml import shipped as recipes
from firstorder.core.training import diagnostics, strata

VECTORS = shipped()
EXPECTED = VECTORS["expected"]
DIGESTS = {
    1: "53131e080c7ad7a7f7e41eeaa1305277304035f42437a1ef55b839afb168b3d0",
    2: "82096a0a50435ad565ce0940c9c3ff59a1a7507c1b073f6a086d8f8cf1fb20cc",
}
EXACT = 1e-12
plain = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "plain.py")))


def apart(got, expected):
    """The largest distance of two nested lists of numbers, relative where they are above 1."""
    rows = zip(numbers(got), numbers(expected), strict=True)
    return max(abs(one - other) / max(1.0, abs(other)) for (_, one), (_, other) in rows)


def test_the_shipped_vectors_are_those_that_the_code_makes():
    made = json.loads(vectors.text(vectors.document()))
    assert {key: made[key] for key in made if key not in ("expected", "cases")} == {
        key: VECTORS[key] for key in VECTORS if key not in ("expected", "cases")
    }, "run `make vectors`"
    for name, case in made["cases"].items():
        for key, values in case["inputs"].items():
            assert apart(values, VECTORS["cases"][name]["inputs"][key]) < EXACT, (name, key)
    now, then = (dict(expected_leaves(tree)) for tree in (made["expected"], EXPECTED))
    assert now.keys() == then.keys(), "run `make vectors`"
    assert max(apart(now[path], then[path]) for path in now) < EXACT


def test_vectors_that_change_have_another_version():
    digest = hashlib.sha256(source().encode()).hexdigest()
    assert DIGESTS[VECTORS["version"]] == digest, "raise VERSION in core/conformance/vectors.py; keep the old digest"


@pytest.mark.parametrize("name", VECTORS["methods"])
def test_plain_arithmetic_from_the_papers_makes_the_same(name):
    method = VECTORS["methods"][name]["settings"]
    for case, entry in EXPECTED["methods"][name].items():
        found = plain.outputs(VECTORS["cases"][case]["inputs"], method)
        for output in ("weight", "gradient", "loss"):
            assert apart(found[output], entry[output]) < EXACT, (case, output)
        assert found["receipts"] == entry["receipts"], case


@pytest.mark.parametrize("case", VECTORS["cases"])
def test_plain_arithmetic_makes_the_same_metrics(case):
    found, entry = plain.metrics(VECTORS["cases"][case]["inputs"]), EXPECTED["metrics"][case]
    assert found.keys() == entry.keys() - {"tolerance"}
    assert {name: value for name, value in found.items() if apart(value, entry[name]) > EXACT} == {}


@pytest.mark.parametrize("rule", EXPECTED["advantages"])
def test_plain_arithmetic_makes_the_same_advantages(rule):
    groups, keys = VECTORS["groups"], VECTORS["groups"]["rules"][rule]
    for name, entry in EXPECTED["advantages"][rule].items():
        whitens = keys.get("advantage.scale") == "whiten"
        if keys["advantage.baseline"] == "value":
            v, lam = groups["values"][name], keys["advantage.gae_lambda"]
            rows = zip(v["values"], v["mask"], v["rewards"], strict=True)
            found = [plain.gae(values, mask, reward, lam) for values, mask, reward in rows]
            if whitens:
                each = [
                    a for row, mask in zip(found, v["mask"], strict=True) for a, on in zip(row, mask, strict=True) if on
                ]
                scaled = iter(plain.whitened(each, [1] * len(each)))
                found = [[next(scaled) if on else 0.0 for on in mask] for mask in v["mask"]]
        else:
            rewards = groups["rewards"][name]
            found = [plain.advantages(row, keys["advantage.baseline"], keys["advantage.std"]) for row in rewards]
            flat, all_rewards = [a for row in found for a in row], [r for row in rewards for r in row]
            scaled = flat
            if whitens:
                scaled = plain.whitened(flat, [1] * len(flat))
            elif keys.get("advantage.scale") == "batch_std":
                scaled = [a / (plain.std(all_rewards, 1) + 1e-6) for a in flat]
            parts_of = iter(scaled)
            found = [[next(parts_of) for _ in row] for row in rewards]
        assert apart(found, entry["advantage"]) < EXACT, name


# The case `rationals`, response by response, from the probabilities that core/conformance/cases.py writes down:
#   theta/mu    2, 1/2, 5/4, 25/8   | 1/5, 5/4, 5/8, 9/4   | 9/8, 15/16 | 15/16, -, 1, 3/4
#   theta/old   2, 1/2, 1, 5/4      | 1/2, 5/4, 5/6, 9/10  | 9/8, 1     | 5/6, -, 1, 6/7
#   old/mu      1, 1, 5/4, 5/2      | 2/5, 1, 3/4, 5/2     | 1, 15/16   | 9/8, -, 1, 7/8
#   A           1                   | -1                   | 1/2        | -1/2
# 13 tokens in 4 responses: a token mean divides by 13/4.
HAND = {
    # w = A
    "reinforce": "1 1 1 1 | -1 -1 -1 -1 | 1/2 1/2 0 0 | -1/2 0 -1/2 -1/2",
    # w = A theta/mu
    "minirl-no-clip": "2 1/2 5/4 25/8 | -1/5 -5/4 -5/8 -9/4 | 9/16 15/32 0 0 | -15/32 0 -1/2 -3/8",
    # the same, 0 where theta/old is above 1.27 and A > 0 (2), or below 0.8 and A < 0 (1/2)
    "minirl": "0 1/2 5/4 25/8 | 0 -5/4 -5/8 -9/4 | 9/16 15/32 0 0 | -15/32 0 -1/2 -3/8",
    # the weights of minirl over 4, 4, 2 and 3 tokens
    "minirl-length-norm": "0 1/8 5/16 25/32 | 0 -5/16 -5/32 -9/16 | 9/32 15/64 0 0 | -5/32 0 -1/6 -1/8",
    # w = A theta/old with the mask of minirl
    "minirl-no-is": "0 1/2 1 5/4 | 0 -5/4 -5/6 -9/10 | 9/16 1/2 0 0 | -5/12 0 -1/2 -3/7",
    # w = A min(theta/mu, 5) with the mask of minirl: nothing reaches 5
    "minirl-tis": "0 1/2 5/4 25/8 | 0 -5/4 -5/8 -9/4 | 9/16 15/32 0 0 | -15/32 0 -1/2 -3/8",
    # w = A times the product of theta/mu: 125/32, 45/128, 135/128, 45/64
    "reinforce-is": "125/32 125/32 125/32 125/32 | -45/128 -45/128 -45/128 -45/128 | 135/256 135/256 0 0"
    " | -45/128 0 -45/128 -45/128",
    # the same product, 0 where it is above 2: the first response
    "mis": "0 0 0 0 | -45/128 -45/128 -45/128 -45/128 | 135/256 135/256 0 0 | -45/128 0 -45/128 -45/128",
    # theta/mu times the smallest before it: 2, 1/2*2, 5/4*1/2, 25/8*1/2 | 1/5, 5/4*1/5, ... | 9/8, 15/16*9/8 | ...
    "minpro": "2 1 5/8 25/16 | -1/5 -1/4 -1/8 -9/20 | 9/16 135/256 0 0 | -15/32 0 -15/32 -45/128",
    # theta/mu of a token times that of the next
    "nfpo": "1 5/8 125/32 25/8 | -1/4 -25/32 -45/32 -9/4 | 135/256 15/32 0 0 | -15/32 0 -3/8 -3/8",
    # theta/old times 4/13, 0 above 6/5 with A > 0 (2 and 5/4), below 4/5 with A < 0 (1/2)
    "ppo-clip": "0 2/13 4/13 0 | 0 -5/13 -10/39 -18/65 | 9/52 2/13 0 0 | -5/39 0 -2/13 -12/91",
    # the upper bound is 1.28, which 5/4 does not reach
    "dapo": "0 2/13 4/13 5/13 | 0 -5/13 -10/39 -18/65 | 9/52 2/13 0 0 | -5/39 0 -2/13 -12/91",
    # that of ppo-clip over the response's own length
    "grpo": "0 1/8 1/4 0 | 0 -5/16 -5/24 -9/40 | 9/32 1/4 0 0 | -5/36 0 -1/6 -1/7",
    # and over 1024
    "dr-grpo": "0 1/2048 1/1024 0 | 0 -5/4096 -5/6144 -9/10240 | 9/16384 1/2048 0 0 | -5/12288 0 -1/2048 -3/7168",
    # ppo-clip times old/mu
    "decoupled-ppo": "0 2/13 5/13 0 | 0 -5/13 -5/26 -9/13 | 9/52 15/104 0 0 | -15/104 0 -2/13 -3/26",
    # dapo times min(old/mu, 2): 5/2 is truncated
    "tis": "0 2/13 5/13 10/13 | 0 -5/13 -5/26 -36/65 | 9/52 15/104 0 0 | -15/104 0 -2/13 -3/26",
    # grpo times old/mu, 0 where that is outside [1/2, 5]: 2/5, which the clip dropped already
    "icepop": "0 1/8 5/16 0 | 0 -5/16 -5/32 -9/16 | 9/32 15/64 0 0 | -5/32 0 -1/6 -1/8",
    # theta/old held in [4/5, 1.28], no sign
    "cispo-tight": "32/25 4/5 1 5/4 | -4/5 -5/4 -5/6 -9/10 | 9/16 1/2 0 0 | -5/12 0 -1/2 -3/7",
    # theta/mu where |theta - mu| is at most 0.15, or A pushes back: 1/4, -1/4, 1/10, 17/40 | -2/5, 1/8, -3/10, 5/16
    "dppo-tv": "0 1/2 5/4 0 | 0 -5/4 0 -9/4 | 9/16 15/32 0 0 | -15/32 0 -1/2 -3/8",
    # theta/mu where the largest KL of a response is at most 0.05: 0.4, 0.51, 0.01, 0.03
    "trm": "0 0 0 0 | 0 0 0 0 | 9/16 15/32 0 0 | -15/32 0 -1/2 -3/8",
    # its mean: 0.18, 0.24, 0.006, 0.0126..., at most 0.03
    "mean-kl": "0 0 0 0 | 0 0 0 0 | 9/16 15/32 0 0 | -15/32 0 -1/2 -3/8",
}


def fractions(text):
    return [[float(F(x)) for x in row.split()] for row in text.split("|")]


@pytest.mark.parametrize("name", HAND)
def test_the_weights_of_rationals_are_those_of_a_pencil(name):
    weight = fractions(HAND[name])
    entry = EXPECTED["methods"][name]["rationals"]
    assert apart(entry["weight"], weight) < EXACT
    assert apart(entry["gradient"], [[-w / 4 for w in row] for row in weight]) < EXACT


def test_the_loss_of_rationals_is_that_of_a_pencil():
    # reinforce: products of theta 5/128, 9/512, 27/128, 9/64 to the powers 1, -1, 1/2 and -1/2, over 4 responses
    loss = -(math.log(F(5, 128)) - math.log(F(9, 512)) + math.log(F(27, 128)) / 2 - math.log(F(9, 64)) / 2) / 4
    assert EXPECTED["methods"]["reinforce"]["rationals"]["loss"] == pytest.approx(loss, abs=EXACT)


OLD_MU = ["1 1 5/4 5/2", "2/5 1 3/4 5/2", "1 15/16", "9/8 1 7/8"]


def test_the_metrics_of_rationals_are_those_of_a_pencil():
    rho = [F(x) for row in OLD_MU for x in row.split()]
    mean, square = sum(rho) / 13, sum(x * x for x in rho) / 13
    # products: 25/8, 3/4, 15/16, 63/64
    w, reward = [F(25, 8), F(3, 4), F(15, 16), F(63, 64)], [1, 0, F(3, 4), F(1, 4)]
    by_hand = {
        "token_eff_sample_size": mean**2 / square,
        "chi2_token": square - 1,
        "chi2_seq": sum(x * x for x in w) / 4 - 1,
        "seq_eff_sample_size": sum(w) ** 2 / (4 * sum(x * x for x in w)),
        "token_mult_prob_error": sum(max(x, 1 / x) for x in rho) / 13,
        "rollout_probs_diff_mean": F(117, 80) / 13,  # 1/10+3/10 + 3/10+1/5+3/8 + 1/40 + 1/10+1/16 = 117/80
        "ratio_tail_2": F(3, 13),  # 5/2, 2/5, 5/2
        "response_length": F(13, 4),
        "reward_pi": sum(x * r for x, r in zip(w, reward, strict=True)) / sum(w),
    }
    found = {name: EXPECTED["metrics"]["rationals"][name] for name in by_hand}
    assert found == pytest.approx({name: float(x) for name, x in by_hand.items()}, abs=EXACT)


def test_advantages_are_those_of_a_pencil():
    found = {rule: entries for rule, entries in EXPECTED["advantages"].items() if rule in ("group_mean", "gae_0.5")}
    assert found["group_mean"]["binary"]["advantage"] == [[0.5, -0.5, -0.5, 0.5], [0.25, 0.25, 0.25, -0.75]]
    # values 1/4, 1/2, 1/8, reward 1: d = 1/4, -3/8, 7/8; 1/4 - 3/16 + 7/32, -3/8 + 7/16, 7/8
    assert found["gae_0.5"]["whole"]["advantage"][0] == [9 / 32, 1 / 16, 7 / 8]
    assert EXPECTED["advantages"]["leave_one_out"]["pair"]["advantage"] == [[1, -1]]
    spread = math.sqrt(F(1, 3)) + 1e-6  # of 1, 0, 0, 1: squares of 1/2 sum to 1, over 3
    assert EXPECTED["advantages"]["group_mean_std"]["binary"]["advantage"][0][0] == pytest.approx(
        0.5 / spread, abs=EXACT
    )


def test_every_recipe_that_runs_and_every_kind_of_part_has_a_method():
    every = methods()
    named = {name for method in every for name in method.recipes}
    assert set(recipes()) - named == {"pr2"}
    tables = {
        "ratio.of": parts.RATIOS,
        "ratio.span": parts.SPANS,
        "correction.kind": parts.CORRECTIONS,
        "rejection.kind": parts.REJECTIONS,
        "rejection.over": parts.OVERS,
        "clip.kind": parts.CLIPS,
        "aggregation.kind": parts.AGGREGATIONS,
    }
    for key, table in tables.items():
        assert {method.settings[key] for method in every} == set(table), key
    baselines = {keys["advantage.baseline"] for keys in VECTORS["groups"]["rules"].values()}
    assert baselines == set(parts.BASELINES)
    scales = {keys.get("advantage.scale", "none") for keys in VECTORS["groups"]["rules"].values()}
    assert scales == set(parts.SCALES)


def test_every_metric_has_a_value_somewhere():
    named = {name for entry in EXPECTED["metrics"].values() for name in entry} - {"tolerance"}
    assert named == diagnostics.QUANTITIES.keys() | strata.QUANTITIES.keys() - {"kl_flipped"}  # which needs routes


def test_every_receipt_counts_something_somewhere():
    entries = [entry for cases in EXPECTED["methods"].values() for entry in cases.values()]
    assert all(any(entry["receipts"][name][0] for entry in entries) for name in entries[0]["receipts"])


def test_every_expected_number_is_finite():
    assert all(math.isfinite(x) for _, leaf in expected_leaves(EXPECTED) for _, x in numbers(leaf))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("step", [1e-9, -1e-9])
def test_no_ratio_lies_on_a_bound_where_rounding_would_decide(case, step):
    stats = vectors.stats_of(case)
    moved = {name: getattr(stats, name) * (1 + step) for name in ("logp_theta", "logp_old")}
    near = type(stats)(**{**vars(stats), **moved})
    for method in methods():
        here, there = (token_weights(each, method.recipe).weight for each in (stats, near))
        assert apart(there.tolist(), here.tolist()) < 1e-6, method.name


def test_what_stands_off_the_mask_is_no_log_prob():
    for case in CASES:
        stats = vectors.stats_of(case)
        off = stats.logp_theta[~stats.mask]
        assert (off > 0).all()


def test_cases_are_float64_and_pass_the_checks_of_a_batch():
    for case in CASES:
        stats = vectors.stats_of(case)
        assert stats.logp_theta.dtype is torch.float64
