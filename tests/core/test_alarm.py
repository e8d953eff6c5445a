"""Alarms from the history of a run: readings against plain numbers, starts and ends, and what a table may say."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from firstorder.core.errors import ConfigError
from firstorder.core.runs import alarm_table
from firstorder.core.runs.alarm import Monitor, fired, slope

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "alarms.py")))


def episodes(history, table, minibatches=1):
    return [(each.alarm.name, each.member, each.since, each.until) for each in fired(history, table, minibatches)]


def test_an_alarm_starts_beyond_its_threshold_and_is_over_after_a_window_that_is_not():
    table = made.table(made.alarm(constant=2.0, window=2))
    x = [1.0] * 4 + [5.0, 5.0, 1.0, 1.0, 1.0, 1.0, 9.0]  # means of two: 3 at step 4, 5, 3, then 1; 5 at the last
    assert episodes(made.history(x=x), table) == [("high", 0, 4, 8), ("high", 0, 10, None)]


def test_nothing_warns_before_what_a_run_began_with_is_known():
    table = made.table(made.alarm(constant=0.5))
    assert episodes(made.history(x=[1.0] * 6), table) == [("high", 0, alarm_table.BEGINNING - 1, None)]
    assert episodes(made.history(x=[1.0] * 6), table, minibatches=4) == [("high", 0, 0, None)]


def test_a_threshold_follows_length_updates_and_entropy():
    term = {"length": 0.5, "minibatches": 1.0, "entropy": -1.0}
    alarm = made.alarm(scale="log", constant=0.0, threshold=term)
    two = torch.tensor([100.0, 400.0], dtype=torch.float64)
    limit = alarm.limit(two, 4, torch.full_like(two, 0.5))
    assert limit.tolist() == pytest.approx([10 * 4 / 0.5, 20 * 4 / 0.5], rel=1e-12)
    table = made.table(alarm)
    for x, warned in ((79.0, []), (81.0, [("high", 0, 0, None)])):
        assert episodes(made.history(x=[x] * 3, length=100.0, entropy=0.5), table, minibatches=4) == warned


@pytest.mark.parametrize(
    ("of", "x", "reading"),
    [
        ("level", [2.0, 2.0, 2.0, 2.0, 1.0, 3.0, 5.0, 7.0], 4.0),
        ("size", [0.0, 0.0, 0.0, 0.0, -1.0, -3.0, -5.0, -7.0], 4.0),
        ("change", [2.0, 2.0, 2.0, 2.0, 1.0, 3.0, 5.0, 7.0], 2.0),
        ("slope", [4.0, 4.0, 4.0, 4.0, 1.0, 3.0, 5.0, 7.0], 0.5),
        ("slope", [4.0, 4.0, 4.0, 4.0, 1.0, None, 5.0, 7.0], 0.5),
    ],
)
def test_what_an_alarm_reads(of, x, reading):
    (change,) = [
        change
        for constant in (reading - 0.01, reading + 0.01)
        for monitor in [Monitor(made.table(made.alarm(of=of, window=4, constant=constant)), 1)]
        for line in made.history(x=x)
        for change in monitor.take(line)
        if change.step == 7 and change.started
    ] or [None]
    assert change is not None
    assert change.readings == pytest.approx([reading], rel=1e-12)


def test_what_begins_with_nothing_has_no_change():
    table = made.table(made.alarm(of="change", constant=1.0), made.alarm("slope", of="slope", window=3, constant=0.0))
    assert episodes(made.history(x=[0.0] * 4 + [1.0, 2.0, 3.0]), table) == []


def test_windows_are_counted_in_updates():
    table = made.table(made.alarm(constant=2.0, window=8))
    x = [1.0, 1.0, 1.0, 5.0, 5.0]
    assert episodes(made.history(x=x), table, minibatches=4) == [("high", 0, 3, None)]  # the mean of two steps is 3
    assert episodes(made.history(x=x), table, minibatches=2) == [("high", 0, 4, None)]  # of four


def test_a_slope_is_that_of_least_squares():
    torch.manual_seed(0)
    y = torch.randn(3, 7, dtype=torch.float64)
    x = torch.arange(7, dtype=torch.float64)
    ones = torch.stack([x, torch.ones(7, dtype=torch.float64)], dim=-1)
    assert torch.allclose(slope(y), torch.linalg.lstsq(ones, y.T).solution[0], rtol=1e-12)
    assert slope(torch.tensor([1.0, torch.nan, 2.0])).isnan()


def test_a_quotient_of_two_quantities_is_read_where_both_are_logged():
    alarm = made.alarm(per="y", constant=2.0)
    table = made.table(alarm)
    assert episodes(made.history(x=[3.0] * 5, y=[1.0] * 5), table) == [("high", 0, 3, None)]
    assert episodes(made.history(x=[3.0] * 5, y=[2.0] * 5), table) == []
    assert episodes(made.history(x=[3.0] * 5, y=[0.0] * 5), table) == []


def test_the_low_side_warns_below():
    table = made.table(made.alarm("low", constant=1.0, side="low"))
    assert episodes(made.history(x=[2.0, 2.0, 2.0, 2.0, 0.5]), table) == [("low", 0, 4, None)]


def test_each_member_has_alarms_of_its_own_and_those_of_the_same_run_alone():
    table = made.table(made.alarm(constant=2.0, window=2), made.alarm("low", constant=0.0, side="low"))
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(40, 3, generator=generator) + 1.0).double().tolist()
    together = episodes(made.history(x=x), table)
    alone = [
        (name, member, since, until)
        for member in range(3)
        for name, _, since, until in episodes(made.history(x=[row[member] for row in x]), table)
    ]
    assert len(alone) > 5
    assert sorted(together, key=str) == sorted(alone, key=str)


def test_a_missing_number_neither_starts_an_alarm_nor_ends_it():
    table = made.table(made.alarm(constant=2.0))
    assert episodes(made.history(x=[1.0, 1, 1, 1, 3, None, None, 3, 1]), table) == [("high", 0, 4, 8)]


def test_a_quantity_that_is_not_logged_is_named_once_a_window_has_passed():
    monitor = Monitor(made.table(made.alarm(window=3), made.alarm("other", quantity="z", window=5)), 1)
    named = []
    for line in made.history(y=[1.0] * 6):
        assert monitor.take(line) == []
        named.append(monitor.unlogged())
    assert named == [[], [], ["x"], ["x"], ["x", "z"], ["x", "z"]]


def test_a_run_that_the_table_was_not_fitted_for_is_said_to_be_one():
    monitor = Monitor(made.table(made.alarm(), length=(1, 50), minibatches=(1, 2)), 4)
    ((change,),) = [monitor.take(line) for line in made.history(x=[1.0], length=100.0)]
    assert [(name, value) for name, value, _ in change.outside] == [("response_length", 100.0), ("minibatches", 4.0)]
    inside = Monitor(made.table(made.alarm(), length=(1, 100), minibatches=(1, 4)), 4)
    assert [c.outside for line in made.history(x=[1.0], length=100.0) for c in inside.take(line)] == [()]


def test_the_table_of_the_package_reads_names_that_a_run_can_log():
    from firstorder.cli.report.catalogue import QUANTITIES

    table = alarm_table.shipped()
    names = {name for alarm in table.alarms for name in (alarm.quantity, alarm.per) if name}
    assert names <= QUANTITIES.keys()
    assert all(alarm.held_out.auc.low > 0.5 for alarm in table.alarms)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(schema="other/1"), "schema"),
        (lambda t: t.pop("regime"), "regime: field required"),
        (lambda t: t["alarms"][0].update(side="left"), "alarms.0.side: input should be 'high' or 'low'"),
        (lambda t: t["alarms"][0]["threshold"].update(width=1.0), "alarms.0.threshold.width: extra inputs"),
        (lambda t: t["alarms"].append(t["alarms"][0]), "names the alarm 'high' twice"),
    ],
)
def test_a_damaged_or_foreign_table_is_refused_by_name(change, said, tmp_path):
    tree = json.loads(made.table(made.alarm()).model_dump_json(by_alias=True))
    file = tmp_path / "table.json"
    file.write_text(json.dumps(tree))
    assert alarm_table.load(file).alarms[0].name == "high"
    change(tree)
    file.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=said) as refused:
        alarm_table.load(file)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_file_that_is_no_table_is_refused(content, tmp_path):
    (tmp_path / "table.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"table\.json"):
        alarm_table.load(tmp_path / "table.json")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        alarm_table.load(tmp_path / "none.json")
