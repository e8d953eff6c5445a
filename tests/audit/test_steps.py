import math
from functools import reduce
from pathlib import Path

import pytest
import torch
from made import made

import firstorder as fo
from firstorder.core.audit import steps
from firstorder.core.audit.tally import merged, tally
from firstorder.core.formats.chunk import chunks
from firstorder.core.formats.format import Options
from firstorder.core.formats.neutral import NEUTRAL
from firstorder.core.runs.alarm import fired
from firstorder.core.runs.alarm_table import Alarm, HeldOut, Interval, Quartiles, Threshold, shipped
from firstorder.core.runs.logs import history

UNKNOWN = (
    "update/grad_norm",
    "update/loss",
    "update/second_order_remainder",
    "update/half_batch_cosine",
    "route/gate_margin",
    "route/thin_margin",
    "replay/rows_",
    "inert/",
    "exact/",
    "clip_",
    "corrected",
    "masked",
    "ratio_not_one",
    "saturated",
    "truncated",
)
"""What only an update, a router's scores or an enumeration know."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("run")) / "run"
    settings = {"schedule.steps": 6, "schedule.prompts": 4, "schedule.group_size": 4, "sim.numerics.kind": "noise"}
    fo.train("minirl-r3", settings, out=folder, dump="neutral")
    return folder


def read(folder, positions=200):
    samples = NEUTRAL.read(sorted((folder / "dump").iterdir()), Options())
    return reduce(merged, map(tally, chunks(samples, positions)))


def test_lines_are_what_the_run_logged(run):
    """All that it logged, but for what is in no dump."""
    for mine, logged in zip(read(run).lines(), history(run), strict=True):
        known = {name: x for name, x in logged.items() if not name.startswith(UNKNOWN)}
        assert set(mine) == set(known)
        assert mine == pytest.approx(known, rel=1e-12, abs=1e-12)
        assert len(mine) > 30


def an_alarm(quantity, limit):
    one = Interval(value=1.0, low=1.0, high=1.0)
    held_out = HeldOut(
        auc=one,
        hits=one,
        false_alarms=one,
        precision=one,
        lead=Quartiles(low=1.0, median=1.0, high=1.0),
        collapsed=1,
        stable=1,
    )
    return Alarm(
        name=f"{quantity} high",
        quantity=quantity,
        window=1,
        side="high",
        scale="linear",
        threshold=Threshold(constant=limit),
        cause="a test",
        remedy="none",
        held_out=held_out,
    )


def test_alarms_of_a_dump_are_those_of_the_run(run):
    logged = [line["kl"] for line in history(run)]
    table = shipped().model_copy(update={"alarms": (an_alarm("kl", sorted(logged[3:])[1]),)})
    mine = fired(read(run).lines(), table, 1)
    assert mine == fired(history(run), table, 1)
    assert mine


def test_lines_do_not_depend_on_the_cut(run):
    for a, b in zip(read(run, 50).lines(), read(run, 10**6).lines(), strict=True):
        assert a == pytest.approx(b, rel=1e-12, abs=1e-12)


def test_rewards_far_from_zero_keep_their_spread():
    samples = made(count=8, steps=1)
    for i, sample in enumerate(samples):
        object.__setattr__(sample, "reward", 1e9 + i)
    (line,) = reduce(merged, map(tally, chunks(samples, 60))).lines()
    rewards = torch.arange(8, dtype=torch.float64)
    assert line["reward"] == pytest.approx(1e9 + float(rewards.mean()), rel=1e-15)
    assert line["reward_std"] == pytest.approx(float(rewards.std(correction=0)), rel=1e-12)


def test_a_step_without_a_value_has_none():
    samples = made(count=4)
    for sample in samples[:4]:
        object.__setattr__(sample, "reward", math.nan)
    first, second = reduce(merged, map(tally, chunks(samples, 60))).lines()
    assert (first["reward"], first["reward_pi"]) == (None, None)
    assert second["reward"] == 0.5


def test_signals_are_read_as_alarms_read_them():
    lines = [{"step": i, "kl": 0.01 * (i + 1), "update/entropy": 1.0 - 0.05 * i} for i in range(16)]
    rows = steps.signals(lines).rows
    assert rows[2]["kl"] is None
    assert rows[3]["kl"] == pytest.approx(0.025)
    assert rows[15]["kl"] == pytest.approx(0.145)
    assert rows[10]["slope of update/entropy"] is None
    assert rows[11]["slope of update/entropy"] == pytest.approx(-0.05 / 0.925)
    assert rows[7]["change of update/entropy"] == pytest.approx(0.725 / 0.925)
    names = [column.key for column in steps.signals(lines).columns]
    assert names == ["step", "kl", "change of update/entropy", "slope of update/entropy"]


def test_signals_of_several_updates_a_step_take_fewer_steps():
    lines = [{"step": i, "kl": float(i)} for i in range(4)]
    assert [row["kl"] for row in steps.signals(lines, minibatches=4).rows] == [0.0, 1.0, 2.0, 3.0]


def test_a_dump_of_one_step_has_no_signals():
    assert not steps.signals([{"step": 0, "kl": 0.1}]).rows


def test_signals_name_quantities_that_are_known():
    known = steps.quantities(2)
    assert {each.quantity for each in steps.SIGNALS} | {each.per for each in steps.SIGNALS if each.per} <= set(known)
    assert "replay/routes_missing_layer_1" in known
    assert "route/flip_rate_layer_1" in known
