"""What each way to replay brings and costs, as a user has it printed."""

import runpy
from pathlib import Path

import pytest

from firstorder.core.routing import flips
from firstorder.sim.exact.compare import scene_of
from firstorder.sim.exact.edges import kl
from firstorder.sim.studies import replayed

SCRIPT = Path(__file__).parents[2] / "docs/examples/replay.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_the_example_says_where_the_bias_of_every_replay_comes_from(script, capsys):
    first, later = script["main"]("tree", 0, (0, 2))
    printed = capsys.readouterr().out.splitlines()
    rules = replayed.rules("tree")
    assert len(printed) == 4 + 2 * len(rules)
    assert printed[4].startswith("| disabled | 0 | ")
    none, r2, r3, margin, condition, constant = first
    assert none.gradient == r2.gradient  # R2 is inert at the first minibatch
    assert r2.value.parts["target"].value == 0 != later[1].value.parts["target"].value
    parts = [one.gradient.parts for one in (none, margin, condition, r3)]
    kept = [each["flips"].norm for each in parts]
    assert kept[-1] == 0 < min(kept[1], kept[2])
    assert max(kept[1], kept[2]) < kept[0]
    cost = [each["target"].norm for each in parts]
    assert cost[0] == 0 < min(cost[1], cost[2])
    assert max(cost[1], cost[2]) < cost[3] < constant.gradient.parts["target"].norm
    assert r3.value.parts["target"].value == pytest.approx(none.value.parts["flips"].value, abs=1e-14)


def test_the_study_reads_what_the_example_prints(script):
    """Two policies of the tree, and their rows."""
    cells = [replayed.cell("tree", seed, (0, 2)) for seed in (0, 501)]
    rows = replayed.read_rows("tree", cells, (0, 2))
    assert len(rows) == 2 * len(replayed.rules("tree"))
    assert rows[2]["replay"] == "R3"
    assert rows[2]["target"] == pytest.approx(sum(c["0"]["R3"]["target"] for c in cells) / 2)
    assert rows[2]["whole_low"] <= rows[2]["whole"] <= rows[2]["whole_high"]


def test_the_long_world_is_near_the_mismatch_that_is_published():
    """Two knobs meet both numbers as nearly as flips, which are steps, let them."""
    sim = replayed.world("long", 3)
    scene = scene_of(sim, ["disabled"])
    old = scene.old["disabled"]
    nats = float((scene.share * kl(scene.mu_old.logp, old.logp)).sum())
    apart = flips(old.routes.contexts, scene.mu_old.routes.contexts).double().mean(-1)
    assert sim.horizon == 512
    assert nats == pytest.approx(1.5e-3, rel=0.15)
    assert float((scene.share * apart).sum()) == pytest.approx(0.10, rel=0.15)
