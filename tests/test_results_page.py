"""What docs/results.md says in words is what its numbers say; a test of every page compares the numbers."""

import re
from pathlib import Path

import pytest

import answers
import claimed
import findings
import found

PAGE = (Path(__file__).parents[1] / "docs/results.md").read_text()
VERDICTS = re.findall(r"\[`([\w-]+)`\]\(claims/[\w-]+\.md\),\s+\*\*([\w ]+)\*\*", PAGE)


def holds_zero(estimate):
    return estimate["low"] <= 0 <= estimate["high"]


@pytest.mark.parametrize("name", found.FINDINGS)
def test_every_finding_has_its_section_and_its_table(name):
    assert PAGE.count(f"{{#{name}}}\n") == 1
    assert f"<!-- table: found {name} -->" in PAGE
    assert f"](#{name}) |" in PAGE


def test_the_verdicts_in_the_text_are_those_of_the_records():
    assert len(VERDICTS) == 4
    assert all(claimed.recorded(claim)[0]["verdict"] == verdict for claim, verdict in VERDICTS)
    for claim in ("r2-r3-crossover", "training-length-norm", "training-long-length-norm", "training-long-off-policy"):
        assert claimed.recorded(claim)[0]["verdict"] == "inconclusive"


def test_the_other_target_of_r3_is_larger_than_the_flips_it_takes_away_and_r2_costs_nothing_at_first():
    for world in ("tree", "long"):
        for updates in (0, 7):
            none, r2, r3 = (findings.replayed(world, updates, replay) for replay in ("disabled", "R2", "R3"))
            assert r3["target"] > none["flips"] > r3["flips"] == 0
            assert r2["target"] < r3["target"]
        assert findings.replayed(world, 0, "R2")["target"] == 0


def test_the_margin_of_r3_is_settled_while_fresh_and_open_at_the_end():
    gaps = [at["r3_minus_r2"] for at in findings.measured("r2-r3-crossover").values() if isinstance(at, dict)]
    assert gaps[0]["low"] > 0
    assert holds_zero(gaps[-1])
    assert [gap["value"] for gap in gaps] == sorted((gap["value"] for gap in gaps), reverse=True)


def test_r2_leads_where_the_paper_has_r3_and_training_does_not_settle_it():
    for horizon in (8192, 32768):
        for n in (4, 8):
            r2, r3 = findings.disagreement(horizon, n)
            assert 0.5 < (r2.score - r3.score) / findings.maps.apart(r2, r3) < 1.5
    assert all(at["holds"] is None for at in findings.judged("training-long-r2-r3").values())


def test_every_bound_holds_and_one_of_each_kind_says_something_of_the_longest_responses():
    bounds = answers.record("bounds")["measured"]["bounds"]
    assert all(bound["holds"] for bound in bounds)
    assert sum(bound["sharp"] for bound in bounds) > len(bounds) / 2
    for of, target in (("error", "disabled"), ("replay", "R3")):
        limits = findings.bounds_at("longest", 32768, of, target, "limit")
        assert sum(limit < 1 - 1e-9 for limit in limits.values()) == 1


def test_the_ratio_costs_little_and_its_absence_and_a_clip_much():
    assert findings.progress("base", "minirl")["progress"] > 0.9
    assert findings.progress("base", "minirl-no-is")["progress_high"] < 0.5
    assert findings.progress("staleness 4", "minirl")["progress_high"] < 0.2
    assert findings.progress("staleness 4", "minirl-no-clip")["progress_low"] > 0.5
    assert "ahead" not in answers.record("frontier")["headline"]


def test_without_the_ratio_one_update_has_no_floor_and_long_responses_collapse():
    found_ = findings.measured("no-is-one-step")["minirl-r3-no-is"]
    assert found_["order"]["low"] > 0.5
    assert all(1 < times["value"] < 2 for times in found_["error_over_error_with_is"].values())
    short = [at["differences"]["collapsed without IS"]["value"] for at in findings.judged("training-no-is").values()]
    assert max(short) < 0.1
    counted = [at for at in findings.judged("training-long-no-is").values() if at["counts"]]
    assert [at["differences"]["collapsed without IS"]["value"] for at in counted] == [1, 1]


def test_closer_engines_collapse_at_greater_lengths_and_none_was_as_close_as_the_published_pair():
    borders = answers.record("regimes")["measured"]["borders"]
    by_kl = sorted(borders, key=lambda border: border["kl"])
    assert [border["low"] for border in by_kl] == sorted((border["low"] for border in borders), reverse=True)
    assert by_kl[0]["kl"] > 1.5e-3
    assert all(row["holds"] is None for row in findings.rows("samples"))


def test_the_causes_are_as_the_text_has_them():
    def count(suspect, verdict):
        return len(findings.rows("causes", suspect=suspect, verdict=verdict))

    assert count("bias", "cause")
    assert not count("bias", "not")
    assert count("contexts", "cause")
    assert not any(count(suspect, "cause") for suspect in ("tail", "anchor", "staleness"))


def test_no_reading_is_an_alarm_and_the_nearest_beat_chance_but_warn_of_few():
    told = [row for row in findings.rows("warnings") if row["auc_low"] is not None]
    assert not any(row["alarm"] for row in told)
    for row in sorted(told, key=lambda row: -row["auc_low"])[:3]:
        assert row["auc_low"] > 0.5
        assert row["hits"] < 0.2


def test_length_normalisation_has_a_floor_in_one_update_and_no_loss_in_training():
    assert findings.measured("length-norm-floor")["gradient_error_by_alpha_at_0.001"]["1.0"]["low"] > 0.05
    for claim in ("training-length-norm", "training-long-length-norm"):
        for at in findings.judged(claim).values():
            assert holds_zero(at["differences"][findings.NORM])
            assert at["recipes"]["minirl-length-norm"]["collapsed"]["high"] < 0.5


def test_the_clip_costs_one_update_and_decides_where_many_are_made_from_samples():
    assert all(
        findings.measured("mask-cost")[f"minirl_staleness_{step}"]["added_gradient_error"]["low"] > 0 for step in (1, 3)
    )
    off_policy = findings.judged("training-long-off-policy")
    (sampled,) = (at["differences"] for place, at in off_policy.items() if place.endswith("sampled"))
    (exact,) = (at["differences"] for place, at in off_policy.items() if "-n8-" in place)
    assert sampled["clip alone - neither"]["low"] > 0 > exact["clip alone - neither"]["high"]
    assert holds_zero(sampled["clip and r3 - clip alone"])
    assert next(iter(findings.judged("training-stale").values()))["differences"]["lead of the clip"]["low"] > 0
