"""What each way to replay brings and costs, as a user has it printed."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs/examples/replay.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_the_example_says_where_the_bias_of_every_replay_comes_from(script, capsys):
    first, later = script["main"]("tree", 0, (0, 2))
    printed = capsys.readouterr().out.splitlines()
    rules = script["rules"]("tree")
    assert len(printed) == 2 + 2 * len(rules)
    assert printed[2].startswith("| disabled | 0 | ")
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


def test_the_long_world_of_the_example_is_near_the_mismatch_that_is_published(script, capsys):
    """Two knobs meet both numbers as nearly as flips, which are steps, let them."""
    assert script["world"]("long", 3).horizon == 512
    nats, _, _, _, share, *_ = capsys.readouterr().out.split()
    assert float(nats) == pytest.approx(1.5e-3, rel=0.15)
    assert float(share.rstrip("%")) == pytest.approx(10, rel=0.15)
