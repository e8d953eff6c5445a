"""The study of causes: the share of a loss that goes with a suspect, the rule that reads it, and runs without it."""

import math

import pytest
import torch

from firstorder.core.routing import flips
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.exact.scene import build, engines, grow
from firstorder.sim.studies import causes, removals, verdicts
from firstorder.sim.studies.removals import DECLINES, FIRST_LOOK, Decline
from firstorder.sim.studies.study import Plan
from firstorder.sim.training.session import SimRun
from firstorder.sim.trials.long import BASE, LongCondition
from firstorder.sim.trials.statistics import Estimate, seeds_to_settle

SMALL = (("positions", 2), ("width", 8), ("coldstart_steps", 60))
TINY = LongCondition(horizon=8, updates=4, problems=2, noise=0.5, sim=SMALL)


def at(value, low, high):
    return Estimate(value=value, low=low, high=high)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_share_that_goes_is_of_means_over_the_same_seeds():
    lost = column(0.4, 0.6, 0.5, 0.5)
    assert verdicts.share_removed(lost, 0.25 * lost).value == pytest.approx(0.75)
    none, all_of, more = (verdicts.share_removed(lost, left) for left in (lost, 0 * lost, -lost))
    assert (none.value, none.low, none.high) == (0.0, 0.0, 0.0)
    assert (all_of.low, more.low) == (1.0, 2.0)
    # in step with the loss the share does not vary; drawn apart it would
    spread = verdicts.share_removed(column(0.1, 0.9, 0.2, 0.8), column(0.05, 0.45, 0.1, 0.4))
    assert spread.high - spread.low == pytest.approx(0.0, abs=1e-12)


def test_a_loss_of_nothing_has_no_share():
    share = verdicts.share_removed(column(0.0, 0.0, 0.0, 0.0), column(0.1, 0.2, 0.1, 0.2))
    assert verdicts.verdict(at(0.0, 0.0, 0.0), share) == "open"


@pytest.mark.parametrize(
    ("share", "wanted"),
    [
        (at(0.5, 0.26, 0.9), "cause"),
        (at(1.3, 0.8, 1.9), "cause"),
        (at(0.49, 0.26, 0.9), "in part"),
        (at(0.6, 0.25, 0.9), "open"),
        (at(0.1, -0.4, 0.24), "not"),
        (at(-2.0, -3.0, -1.0), "not"),
        (at(0.1, -0.4, 0.25), "open"),
        (at(0.5, math.nan, math.nan), "open"),
    ],
)
def test_the_rule(share, wanted):
    assert verdicts.verdict(at(0.5, 0.4, 0.6), share) == wanted
    assert verdicts.verdict(at(0.2, 0.1, 0.3), share) == "open"  # too small a loss


@pytest.mark.parametrize(
    ("share", "seeds", "wanted"),
    [
        (at(0.5, 0.0, 2.0), 8, 32),  # twice as narrow below
        (at(0.0, -9.0, 0.5), 8, 32),  # twice as narrow above
        (at(0.75, 0.5, 1.0), 8, 2),
        (at(0.25, 0.1, 0.4), 8, None),
        (at(0.5, math.nan, math.nan), 1, None),
    ],
)
def test_seeds_that_would_settle_it_follow_from_the_width(share, seeds, wanted):
    assert seeds_to_settle(share, seeds, verdicts.LEAST) == wanted


def test_a_rise_of_the_trained_policy_can_be_a_fall_of_the_deployed_one():
    trained = column(0.1, 0.2, 0.3, 0.305, 0.2, 0.4).expand(2, -1)
    deployed = torch.stack([column(0.1, 0.2, 0.15, 0.1, 0.3, 0.2), trained[0]])
    assert verdicts.rises_that_fail(trained, deployed).tolist() == [2 / 3, 0.0]
    assert verdicts.rises_that_fail(trained - trained, deployed).tolist() == []


@pytest.mark.parametrize(
    ("states", "wanted"),
    [
        ([("a", "cause"), ("b", "open")], "holds"),
        ([("a", "not"), ("b", "not")], "does not hold"),
        ([("a", "in part")], "holds in part"),
        ([("a", "open")], "open"),
        ([], "open"),
        ([("a", "not"), ("b", "cause"), ("c", "cause"), ("d", "in part")], "holds: b, c; in part: d; does not: a"),
    ],
)
def test_a_claim_has_the_answer_of_its_removals(states, wanted):
    assert verdicts.over(states) == wanted


def test_the_reference_keeps_the_world_and_leaves_the_method():
    run = removals.keyed(TINY, reading_noise=1.0, update_contexts="on_chain", min_p=0.1, shared=0.0)
    run = removals.scaled(run.but(sampled=True, minibatches=4, lr=0.1))
    assert removals.reference(run) == removals.keyed(TINY, shared=0.0)
    assert TINY.lr == BASE.lr


def test_the_headline_names_every_suspect_once():
    answers = [("a", "holds"), ("b", "holds: x; does not: y"), ("c", "does not hold"), ("d", "holds")]
    said = causes.headline([{"suspect": suspect, "answer": answer} for suspect, answer in answers])
    assert said == "holds: a, d; holds in some runs: b; does not hold: c"


@pytest.mark.parametrize("name", DECLINES)
def test_every_removal_is_a_run_of_its_own_that_can_be_trained(name):
    decline = DECLINES[name]
    changed = [(each.condition, each.recipe, each.flipless) for each in decline.removals]
    assert len(set(changed)) == len(changed)
    assert (decline.condition, decline.recipe, False) not in changed
    for condition, recipe, _ in [(decline.condition, decline.recipe, False), *changed]:
        assert condition.updates == decline.condition.updates
        SimRun(recipe=condition.method(recipe), sim=condition.world(range(2))).check()
    assert {each.suspect for each in decline.removals} <= causes.CLAIMS.keys()


def test_every_claim_is_tried():
    assert {each.suspect for decline in DECLINES.values() for each in decline.removals} == causes.CLAIMS.keys()


def test_engines_without_flips_are_as_far_apart(same):
    seeds = range(3)
    made = removals.flipless(TINY, seeds)
    which = torch.arange(3)
    apart = []
    for condition in (TINY, made):
        sim = condition.world(seeds)
        scene = build(sim, grow(sim), engines(sim, which), starting_weights(sim, which), modes=["disabled"])
        rate = flips(scene.old["disabled"].routes.contexts, scene.mu_old.routes.contexts).double().mean()
        apart.append((removals._divergence(sim, which), float(rate)))
    (before, flipped), (after, none) = apart
    assert after == pytest.approx(before, rel=2e-3)
    assert flipped > 0.02
    assert none == 0


@pytest.fixture
def tiny(monkeypatch):
    """A first look at a world of a second."""
    taken = tuple(
        removals.Removal(suspect=each.suspect, how=each.how, condition=TINY, recipe=each.recipe)
        for each in FIRST_LOOK["no IS, exact"].removals
        if each.suspect in ("bias", "boundaries")
    )
    monkeypatch.setattr(causes, "FIRST_LOOK", {"no IS": Decline(condition=TINY, recipe="minirl-no-is", removals=taken)})
    return [each.recipe for each in taken]


def test_a_run_that_becomes_the_reference_takes_all_of_the_loss_and_is_no_evidence(tiny, tmp_path):
    answer = causes.STUDY.answer(Plan(folder=tmp_path, seeds=range(4), quick=True))
    itself, bias, boundaries = answer.rows
    assert [row["recipe"] for row in answer.rows] == ["minirl-no-is", *tiny]
    assert itself.keys() == bias.keys() == boundaries.keys()
    assert (bias["share"], bias["share_low"], bias["share_high"]) == (1.0, 1.0, 1.0)
    assert bias["lost"] == 0.0
    assert bias["verdict"] is None
    assert itself["lost"] == pytest.approx(bias["j_pi"] - itself["j_pi"], abs=0.1)
    assert boundaries["share"] == pytest.approx(1 - boundaries["lost"] / itself["lost"], rel=1e-9)
    assert {claim["suspect"] for claim in answer.measured["claims"]} == {"boundaries"}
    assert [each["condition"] for each in answer.measured["deployed"]["runs"]] == ["no IS", "no IS: reference"]
    behind = answer.measured["deployed"]["runs"][0]["behind"]["value"]
    assert behind == pytest.approx(itself["j_pi"] - itself["j_mu"], abs=0.1)


def test_its_figure_has_a_panel_for_each_run_and_a_line_for_each_removal():
    from firstorder.cli.report.studies import study

    shown = {"suspect": "bias", "removal": "token ratio", "share": 0.6, "share_low": 0.4, "share_high": 3.0}
    rows = [
        {"condition": name, "verdict": verdict} | (shown if verdict else dict.fromkeys(shown))
        for name, verdict in [("no IS", None), ("no IS", "cause"), ("no IS", "not"), ("stale", None), ("stale", "open")]
    ]
    figure = study("causes", rows)
    assert [ax.get_title("left") for ax in figure.axes] == ["no IS", "stale"]
    assert [len(ax.get_yticklabels()) for ax in figure.axes] == [2, 1]
