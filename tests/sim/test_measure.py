import json
import math

import pytest
import torch

from firstorder.core.errors import ConfigError, SizeError
from firstorder.core.runs.files import to_json
from firstorder.core.settings import toml
from firstorder.sim.config import Sim
from firstorder.sim.exact import measure as module
from firstorder.sim.exact.fit import compare
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.size import count

KEYS = {
    "j_seq",
    "j_mu",
    "j_token",
    "value_error",
    "gradient_error",
    "gradient_error_raw",
    "update_scale",
    "gradient_error_natural",
    "cosine",
    "cosine_natural",
    "replay_bias",
    "kl_mu_old",
    "kl_mu_old_replayed",
    "entropy",
    "flip_rate",
    "tokens_flipped",
    "nodes",
}
NAMES = toml.shipped()
UNSUPPORTED = ["pr2"]
LOW = ["bf16", "fp16", "fp8", "int8", "split", "gate_order"]


@pytest.fixture(scope="module")
def measured(small, make_recipe):
    known = {}

    def look_up(name, **changes):
        key = (name, repr(changes))
        if key not in known:
            known[key] = measure(make_recipe(name), small(**changes))
        return known[key]

    return look_up


@pytest.mark.parametrize("name", [n for n in NAMES if n not in UNSUPPORTED and n[-3:-1] != "-n"])
def test_every_shipped_recipe_is_measured_in_plain_finite_numbers(name, measured):
    result = measured(name, numerics={"kind": "noise", "scale": 0.01}, staleness=1, lr=0.02, horizon=2)
    assert result.keys() >= KEYS
    assert all(math.isfinite(result[key]) for key in KEYS)
    assert json.loads(to_json(result))["nodes"] == result["nodes"]
    assert result["variance"] is None if result["terms"] else result["variance"] > 0


@pytest.mark.parametrize("name", ["minirl", "minirl-r2", "minirl-r3", "grpo", "reinforce"])
@pytest.mark.parametrize("staleness", [0, 2])
def test_the_numbers_of_one_measurement_agree_with_each_other(name, staleness, measured, small):
    r = measured(name, staleness=staleness, lr=1.0)
    assert r["value_error"] == abs(r["approximation_error"])
    assert r["replay_bias"] == pytest.approx(r["j_seq_natural"] - r["j_seq"], abs=1e-15)
    assert r["value_error_natural"] == pytest.approx(abs(r["approximation_error"] + r["replay_bias"]), abs=1e-15)
    assert r["gradient_error"] ** 2 + r["cosine"] ** 2 == pytest.approx(1)
    assert r["gradient_error_natural"] ** 2 + r["cosine_natural"] ** 2 == pytest.approx(1)
    assert 0 < r["gradient_error"] <= r["gradient_error_raw"]
    assert r["update_scale"] * r["cosine"] > 0
    assert r["flip_rate"] <= r["tokens_flipped"] <= 2 * r["flip_rate"]
    assert r["flip_rate"] == pytest.approx(sum(r["flip_rate_per_layer"]) / 2)
    assert 0 < r["entropy"] < math.log(3)
    assert r["diagnostics"]["kl"] == pytest.approx(r["kl_mu_old_replayed"])  # k1 is the KL in expectation
    assert r["nodes"] == count(small())
    assert all(r["value_error"] <= bound for bound in r["bounds"].values())
    if name in ("minirl", "grpo", "reinforce"):
        assert r["replay_bias"] == 0
        assert r["gradient_error_natural"] == r["gradient_error"]
    if name != "minirl-r3":
        assert r["kl_mu_old_replayed"] == r["kl_mu_old"]
    if not staleness:
        assert r["j_mu_theta"] == r["j_mu"]
        assert (r["replay_bias"] == 0) == (name != "minirl-r3")


@pytest.mark.parametrize("name", ["minirl", "minirl-r2", "minirl-r3", "ctpo", "minpro", "nfpo", "tis", "dr-grpo"])
def test_engines_that_agree_leave_no_error(name, small, make_recipe):
    recipe = make_recipe(name, "schedule.group_size=5", "advantage.std=false")
    r = measure(recipe, small(numerics={"kind": "exact"}))
    zero = ("value_error", "replay_bias", "kl_mu_old", "kl_mu_old_replayed", "flip_rate", "tokens_flipped")
    assert [r[key] for key in zero] == pytest.approx([0.0] * len(zero), abs=1e-14)
    assert r["gradient_error"] == pytest.approx(0.0, abs=1e-12)
    assert r["cosine"] == pytest.approx(1.0)
    assert r["j_seq"] == pytest.approx(r["j_mu"])
    if recipe.aggregation.kind == "token_sum":
        assert r["update_scale"] == pytest.approx(5 / 4)
        assert r["gradient_error_raw"] == pytest.approx(1 / 5)


def test_a_baseline_without_the_sample_leaves_no_scale_either(small, make_recipe):
    recipe = make_recipe("minirl", "advantage.baseline=leave_one_out")
    r = measure(recipe, small(numerics={"kind": "exact"}))
    assert r["update_scale"] == pytest.approx(1.0)
    assert r["gradient_error_raw"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": 3, "horizon": 4, "width": 5, "expert_width": 7, "experts": 5, "top_k": 3, "layers": 1, "seed": 1},
        {"vocab": 6, "horizon": 2, "width": 11, "layers": 3, "experts": 3, "top_k": 1, "router": "top1", "seed": 23},
        {"prompt_length": 3, "experts": 6, "router": "sigmoid_bias", "seed": 77, "reward": "graded"},
        {"horizon": 5, "prompt_length": 1, "prompts": 1, "router": "topk_softmax", "temperature": 1.7, "seed": 500},
        {"task": "guess", "vocab": 4, "horizon": 4, "turn_length": 2, "seed": 12},
    ],
)
def test_under_r3_the_value_error_is_of_second_order_and_the_gradient_error_of_first(change, small, make_recipe):
    recipe = make_recipe("minirl-r3", "schedule.group_size=2")
    far, near = (measure(recipe, small(**(change | {"numerics": {"kind": "noise", "scale": s}}))) for s in (2e-3, 2e-4))
    assert math.log10(far["value_error"] / near["value_error"]) == pytest.approx(2, abs=0.25)
    assert math.log10(far["gradient_error"] / near["gradient_error"]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_recipe_that_does_not_fit_the_form_is_refused_with_its_reason(name, small, make_recipe):
    with pytest.raises(ConfigError, match=f"recipe {name} cannot be run: "):
        measure(make_recipe(name), small())


def test_replay_on_a_dense_model_is_refused(small, make_recipe):
    with pytest.raises(ConfigError, match="can never act"):
        measure(make_recipe("minirl-r3"), small(top_k=4))
    assert measure(make_recipe("minirl"), small(top_k=4))["flip_rate"] == 0


def test_a_tree_beyond_memory_is_refused_before_it_is_grown(make_recipe, monkeypatch):
    monkeypatch.setattr(module.memory, "available", lambda: 1 << 30)
    with pytest.raises(SizeError, match=r"lower sim\.horizon to"):
        measure(make_recipe("minirl"), Sim(horizon=40))


def test_engines_that_depend_on_the_batch_carry_an_interval_that_narrows(small, make_recipe):
    recipe, widths = make_recipe("minirl-r3"), []
    for draws in (4, 64):
        r = measure(recipe, small(numerics={"kind": "batch"}, draws=draws))
        assert set(r["intervals"]) >= {"j_mu", "value_error", "kl_mu_old", "flip_rate", "cosine_natural", "entropy"}
        interval = r["intervals"]["gradient_error"]
        assert interval["low"] <= interval["estimate"] <= interval["high"]
        assert any(f"means over {draws} draws" in note for note in r["notes"])
        assert r["variance"] is None
        widths.append(interval["high"] - interval["low"])
    assert 0 < widths[1] < widths[0]


@pytest.mark.parametrize("name", ["dapo", "tis", "cispo"])
def test_a_batch_scope_carries_intervals_near_its_limit(name, measured):
    r = measured(name)
    assert any("large-batch limit" in note for note in r["notes"])
    fits = {"gradient_error", "gradient_error_raw", "update_scale", "cosine"}
    assert set(r["intervals"]) == fits | {f"{n}_natural" for n in fits - {"gradient_error_raw"}}
    for key, interval in r["intervals"].items():
        width = interval["high"] - interval["low"]
        assert interval["low"] - width < r[key] < interval["high"] + width


def test_an_exact_measurement_carries_no_interval(measured):
    assert measured("minirl")["intervals"] == {}
    assert measured("minirl")["notes"] == []


@pytest.mark.parametrize(
    ("numerics", "training", "agree"),
    [
        ({"kind": "exact"}, {"kind": "exact"}, True),
        ({"kind": "exact", "scale": 0.5}, {"kind": "exact"}, True),
        ({"kind": "bf16"}, {"kind": "bf16"}, True),
        ({"kind": "noise", "scale": 0.1}, {"kind": "noise", "scale": 0.1}, True),
        ({"kind": "exact"}, {"kind": "bf16"}, False),
        ({"kind": "noise", "scale": 0.1}, {"kind": "noise", "scale": 0.1, "seed": 1}, False),
        ({"kind": "fp8"}, {"kind": "bf16"}, False),
    ],
)
def test_parts_that_undo_a_mismatch_are_inert_only_where_there_is_none(numerics, training, agree, small, make_recipe):
    r = measure(make_recipe("icepop", "router_replay.mode=R3"), small(numerics=numerics, training_numerics=training))
    named = " ".join(r["inert"])
    assert ("correction.kind = mask" in named) == agree
    assert ("router_replay.mode = R3" in named) == agree
    assert (r["kl_mu_old"] == pytest.approx(0.0, abs=1e-14)) == agree
    assert (max(r["receipts"][sign]["corrected"] for sign in ("positive", "negative")) == 0) == agree


@pytest.mark.parametrize("seed", range(5))
def test_engines_that_differ_by_less_than_a_kl_can_tell_do_differ(seed, small, make_recipe):
    r = measure(make_recipe("icepop"), small(numerics={"kind": "noise", "scale": 1e-9}, seed=seed))
    assert abs(r["kl_mu_old"]) < 1e-14
    assert "correction.kind = mask" not in " ".join(r["inert"])


@pytest.mark.parametrize("kind", LOW)
def test_a_low_precision_target_says_that_its_gradients_are_not_exact(kind, small, make_recipe):
    r = measure(make_recipe("minirl"), small(training_numerics={"kind": kind}))
    assert any("straight-through" in note for note in r["notes"])


def test_the_variance_is_that_of_a_minibatch(small, make_recipe):
    one = measure(make_recipe("minirl", "schedule.prompts=1"), small())["variance"]
    many = measure(make_recipe("minirl", "schedule.prompts=64", "schedule.minibatches=4"), small())["variance"]
    assert many == pytest.approx(one / 16)


def test_a_larger_group_has_less_variance(small, make_recipe):
    found = [measure(make_recipe("minirl", f"schedule.group_size={g}"), small())["variance"] for g in (4, 16, 64)]
    assert found[0] > found[1] > found[2]


def test_a_recipe_s_own_direction_moves_theta_by_its_own_update(small, make_recipe):
    sim = small(staleness=1, lr=1.0)
    natural = measure(make_recipe("minirl-length-norm"), sim)
    own = measure(make_recipe("minirl-length-norm"), sim.model_copy(update={"direction": "recipe"}))
    other = measure(make_recipe("minirl"), sim.model_copy(update={"direction": "recipe"}))
    assert len({natural["j_seq"], own["j_seq"], other["j_seq"]}) == 3
    assert natural["j_seq"] == measure(make_recipe("minirl"), sim)["j_seq"]


def test_a_target_without_reward_has_no_gradient_to_compare_with(small, make_recipe):
    r = measure(make_recipe("minirl"), small(vocab=4, horizon=1, prompts=1, truncated="zero"))
    assert r["gradient_norm"] == 0
    assert r["j_seq"] == 0
    assert json.loads(to_json(r))["gradient_error"] is None


def test_members_that_a_measurement_does_not_read_are_said(small, make_recipe):
    alone, many = (measure(make_recipe("minirl"), small(members=m)) for m in (1, 100_000))
    assert many["notes"] == [*alone["notes"], many["notes"][-1]]
    assert many["notes"][-1].startswith("sim.members = 100000 is read by train and sweep")
    assert many["j_seq"] == alone["j_seq"]


def test_a_fit_knows_the_best_scale_the_raw_error_and_the_angle():
    u = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    g = torch.tensor([[1.0, 1.0], [3.0, 4.0], [-2.0, -2.0]], dtype=torch.float64)
    fit = compare(u, g)
    assert fit.scale.tolist() == pytest.approx([0.5, 0.0, -2.0])
    assert fit.error.tolist() == pytest.approx([0.5**0.5, 1.0, 0.0])
    assert fit.raw.tolist() == pytest.approx([1.0, 1.0, 1.5])
    assert fit.cosine.tolist() == pytest.approx([0.5**0.5, 0.0, -1.0])


def test_the_default_simulator_is_the_one_that_the_claims_are_settled_in(make_recipe):
    assert measure(make_recipe("minirl-r3", "schedule.group_size=2"), Sim())["nodes"] == 484


@pytest.mark.parametrize("power", [-600, 500])
def test_comparisons_do_not_depend_on_how_large_both_are(power):
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    u = g + 0.3 * torch.randn(2, 9, generator=generator, dtype=torch.float64)
    near, far = compare(u, g), compare(u * 2.0**power, g * 2.0**power)
    for name in ("error", "raw", "scale", "cosine"):
        assert torch.equal(getattr(near, name), getattr(far, name))


def test_the_graph_gives_the_large_batch_limit_and_says_that_nothing_of_it_is_sampled(make_recipe):
    sim = Sim(world="graph", task="chain", prompts=2, positions=2, vocab=4, horizon=4, samples=8)
    found = measure(make_recipe("dapo"), sim)
    note = next(note for note in found["notes"] if note.startswith("weights read the whole batch"))
    assert note.endswith("the large-batch limit")
    assert "gradient_error" not in found["intervals"]
