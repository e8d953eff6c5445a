from dataclasses import replace
from functools import reduce

import pytest
import torch
from made import made

from firstorder.core.audit import clustered, ratios, replays, weights
from firstorder.core.audit.seen import Seen
from firstorder.core.formats.chunk import chunks, pad
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.surrogate import receipts, token_weights
from firstorder.core.settings.toml import build, read, shipped
from firstorder.core.training.diagnostics import diagnose


def whole(module, samples, positions=300):
    return reduce(clustered.merged, (module.measured(Seen(chunk=chunk)) for chunk in chunks(samples, positions)))


def rows(samples, positions=300):
    found = weights.table(whole(weights, samples, positions), signed=True)
    return {row["weight"]: row for row in found.rows}


def test_every_shipped_recipe_has_one_row_unless_it_reads_more_than_a_dump_holds():
    named = [name for weight in weights.weights() for name in weight.names]
    assert len(named) == len(set(named))
    for name in set(shipped()) - set(named):
        recipe = build(Recipe, read(name))
        assert recipe.needs or recipe.about.unsupported or recipe.terms.active, name


def test_recipes_of_one_row_have_one_weight():
    stats = pad(made(count=6, spread=0.5)).stats()
    for weight in weights.weights():
        expected = weights.factor(token_weights(stats, weight.recipe), stats.mask)
        for name in weight.names[1:4]:
            other = token_weights(stats, build(Recipe, read(name)))
            assert torch.equal(weights.factor(other, stats.mask), expected), name


@pytest.mark.parametrize("name", ["minirl", "icepop", "tis", "mis-geometric", "reinforce-is", "gmpo", "vespo", "ctpo"])
def test_numbers_of_a_weight_are_those_of_the_whole_batch(name):
    samples = made(count=8, spread=0.05 if name == "mis-geometric" else 0.8)
    stats, recipe = pad(samples).stats(), build(Recipe, read(name))
    made_of = token_weights(stats, recipe)
    f, acted = weights.factor(made_of, stats.mask), receipts(stats, made_of, recipe)
    row = rows(samples)[name]
    on = f[stats.mask]
    assert row["mean"].value == pytest.approx(float(on.mean()))
    assert row["ess_token"].value == pytest.approx(float(on.sum() ** 2 / (on.square().sum() * len(on))))
    each = f.sum(-1) / stats.lengths
    assert row["ess_sequence"].value == pytest.approx(float(each.sum() ** 2 / (each.square().sum() * len(each))))
    assert row["dropped"].value == pytest.approx(float((each == 0).double().mean()))
    for part in ("masked", "truncated", "saturated"):
        assert row[part].value == pytest.approx(float(acted[part][0] / acted[part][1]))
    clipped = (acted["clip_upper"][0] + acted["clip_lower"][0]) / acted["clip_upper"][1]
    assert row["clipped"].value == pytest.approx(float(clipped))


def test_the_weight_is_the_factor_times_the_advantage_over_the_norm():
    stats = pad(made(count=6, spread=0.5)).stats()
    for weight in weights.weights():
        made_of = token_weights(stats, weight.recipe)
        rebuilt = stats.token_advantage * weights.factor(made_of, stats.mask) / made_of.norm
        torch.testing.assert_close(rebuilt, made_of.weight)


def test_at_theta_old_a_recipe_without_a_ratio_of_the_engines_changes_nothing():
    row = rows(made(count=6, spread=1.0))["grpo"]
    assert [row[key].value for key in ("mean", "ess_token", "ess_sequence", "clipped", "dropped")] == [1, 1, 1, 0, 0]


def test_a_product_of_ratios_leaves_few_responses():
    found = rows(made(count=20, spread=1.0))
    assert found["reinforce-is"]["ess_sequence"].value < 0.3
    assert found["reinforce-is"]["ess_sequence"].low is None
    assert found["minirl"]["ess_sequence"].value > 0.5


def test_without_advantages_the_table_says_that_clips_by_sign_drop_nothing():
    samples = [replace(s, advantage=None) for s in made(count=6, spread=1.0)]
    of = whole(weights, samples)
    assert "no advantages" in weights.table(of, signed=False).note
    assert "no advantages" not in weights.table(of, signed=True).note
    assert {row["weight"]: row for row in weights.table(of, signed=False).rows}["dppo-tv"]["clipped"].value == 0


def test_a_dump_without_both_log_probs_has_no_weights():
    assert weights.measured(Seen(chunk=pad([replace(s, logp_old=None) for s in made(count=2)]))) is None


def test_replay_changes_the_rows_that_differ():
    samples = made(count=10)
    chunk = pad(samples)
    seen = Seen(chunk=chunk)
    found = {row["quantity"]: row["value"].value for row in replays.table(whole(replays, samples)).rows}
    flipped, there = seen.agreement.flipped, seen.agreement.there
    assert found["rows_changed"] == pytest.approx(float(flipped.sum() / there.sum()))
    first, *_ = replays.table(whole(replays, samples)).rows
    assert first["of"] == int(there.sum())
    d, hit = seen.d, seen.agreement.hit
    k3 = d.exp() - 1 - d
    assert found["k3_flipped"] == pytest.approx(float(k3[hit].mean()))
    assert found["k3_unflipped"] == pytest.approx(float(k3[chunk.mask & ~hit].mean()))
    assert found["k3_share"] == pytest.approx(float(k3[hit].sum() / k3[chunk.mask].sum()))
    assert found["k3_excess"] == pytest.approx(float(k3[chunk.mask].mean() - k3[chunk.mask & ~hit].mean()), rel=1e-9)


def test_a_disagreement_that_lies_on_flipped_tokens_is_found_there():
    samples = []
    for sample in made(count=20):
        hit = Seen(chunk=pad([sample])).agreement.hit[0]
        samples.append(replace(sample, logp_old=sample.logp_mu - 0.4 * hit.double()))
    found = {row["quantity"]: row["value"].value for row in replays.table(whole(replays, samples)).rows}
    assert found["k3_share"] == 1.0
    assert found["k3_unflipped"] == 0.0


def test_the_ratio_falls_into_what_updates_moved_and_what_engines_differ_by():
    samples = []
    for sample in made(count=10):
        theta = torch.where(sample.mask, sample.logp_old - 0.02, 0.0)
        samples.append(replace(sample, columns={ratios.THETA: theta}))
    found = {row["ratio"]: row for row in ratios.table(whole(ratios, samples)).rows}
    assert found["theta/old"]["kl"].value == pytest.approx(0.02)
    assert found["theta/mu"]["kl"].value == pytest.approx(0.02 + found["old/mu"]["kl"].value)
    expected = diagnose(pad(samples).stats())
    for name in ratios.SHOWN:
        assert found["old/mu"][name].value == pytest.approx(float(expected[name]), rel=1e-12, abs=1e-12)


def test_without_the_trained_policy_there_is_no_table_of_ratios():
    assert ratios.measured(Seen(chunk=pad(made(count=2)))) is None
