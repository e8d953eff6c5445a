import json
import math

import pytest
import torch

from firstorder.core.runs.folder import RunFolder
from firstorder.core.runs.logs import StepLog, lines
from firstorder.core.runs.track import LAYERS, Tracker, bounded_quantities, hyper, summary
from firstorder.core.training.diagnostics import QUANTITIES
from firstorder.core.training.replay import quantities

CONFIG = {"about": {"name": "x"}, "clip": {"high": 0.2}, "optimizer": {"betas": (0.9, 0.95), "max_grad_norm": math.inf}}


class Sink:
    """Holds what it is given; fails in the call named `fails`, at a step of its own choice."""

    place = "memory"

    def __init__(self, run, first=0, fails="", at=3):
        if fails == "open":
            raise RuntimeError("cannot open\nfor reasons")
        self.run, self.next, self.fails, self.at, self.held, self.closed = run, first, fails, at, [], 0

    def log(self, step, values):
        if self.fails == "log" and step == self.at:
            raise OSError(28, "No space left on device")
        self.held.append((step, values))

    def close(self):
        self.closed += 1
        if self.fails == "close":
            raise ConnectionError


def step(number, members=None):
    value = torch.tensor(float(number)) if members is None else torch.arange(members) + float(number)
    return StepLog(step=number, metrics={"kl": value}, receipts={"clip_upper": 2 * value})


def line(number):
    metrics, receipts = lines(step(number))
    return metrics | receipts


@pytest.fixture
def folder(tmp_path):
    """A run folder with the logs of three steps."""
    made = RunFolder(tmp_path / "run", CONFIG, resume=False)
    for number in range(3):
        made.append(step(number))
    return made


def tracker(folder, said, **sinks):
    openers = {name: lambda run, options=options: Sink(run, **options) for name, options in sinks.items()}
    return Tracker(folder, openers, QUANTITIES, said.append)


def steps(sink):
    return [number for number, _ in sink.held]


def test_a_sink_gets_the_steps_that_it_lacks_and_then_every_new_one(folder):
    said = []
    found = tracker(folder, said, new={}, ahead={"first": 2}, far={"first": 4})
    for number in (3, 4):
        found.log(line(number))
    assert {name: steps(sink) for name, sink in found.sinks.items()} == {
        "new": [0, 1, 2, 3, 4],
        "ahead": [2, 3, 4],
        "far": [4],
    }
    assert found.sinks["new"].held[1] == (1, {"kl": 1.0, "clip_upper": 2.0})
    found.close()
    assert [sink.closed for sink in found.sinks.values()] == [1, 1, 1]
    assert said == []


@pytest.mark.parametrize(
    ("fails", "reason", "held"),
    [("open", "cannot open", None), ("log", "No space left on device", [0, 1, 2]), ("close", "ConnectionError", None)],
)
def test_a_sink_that_fails_is_named_once_and_the_others_go_on(fails, reason, held, folder):
    said = []
    found = tracker(folder, said, good={}, bad={"fails": fails}, last={})
    bad = found.sinks.get("bad")
    for number in (3, 4):
        found.log(line(number))
    found.close()
    found.close()
    assert [steps(found.sinks[name]) for name in ("good", "last")] == [[0, 1, 2, 3, 4]] * 2
    assert "bad" not in found.sinks
    assert len(said) == 1
    assert said[0].startswith("--track bad stopped: ")
    assert reason in said[0]
    assert said[0].endswith("; the run goes on, and --resume --track bad fills the gap")
    assert "\n" not in said[0]
    assert held is None or steps(bad) == held


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_not_a_failure_of_the_sink(error, folder):
    found = tracker(folder, [], one={})
    found.sinks["one"].log = lambda *_: (_ for _ in ()).throw(error)
    with pytest.raises(error):
        found.log(line(3))


def test_a_run_has_one_identity_however_often_it_is_opened(folder, tmp_path):
    runs = [tracker(folder, [], a={}, b={}).sinks[name].run for name in "ab"]
    folder.close()
    again = tracker(RunFolder(folder.path, CONFIG, resume=True), [], a={}).sinks["a"].run
    other = tracker(RunFolder(tmp_path / "other", CONFIG, resume=False), [], a={}).sinks["a"].run
    assert runs[0].id == runs[1].id == again.id != other.id
    assert (again.name, other.name) == ("run", "other")
    assert again.folder == folder.path / "tracking" / "a"
    assert again.hyper["clip.high"] == 0.2


def test_a_folder_that_cannot_be_made_costs_the_sink_alone(folder):
    (folder.path / "tracking").write_text("in the way")
    said = []
    assert tracker(folder, said, one={}).sinks == {}
    assert len(said) == 1


def test_history_is_both_logs_without_what_is_damaged(folder):
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "kl"')
    (folder.path / "receipts.jsonl").write_text(json.dumps({"step": 1, "clip_upper": 7.0}) + "\n")
    assert list(folder.history()) == [
        {"step": 0, "kl": 0.0},
        {"step": 1, "kl": 1.0, "clip_upper": 7.0},
        {"step": 2, "kl": 2.0},
    ]


def test_values_that_are_not_numbers_are_left_out():
    members = {"a": [1.0, None], "b": [1.0, math.nan], "c": [2.0, 4.0]}
    assert summary({"step": 0, "x": None, "y": math.inf, "z": 3} | members) == {
        "z": 3.0,
        "c": 3.0,
        "q25/c": 2.5,
        "q75/c": 3.5,
    }


def test_sinks_show_every_layer_of_a_few_and_the_extremes_of_many():
    few = {"step": 0, "x": 0.5} | {f"x_layer_{i}": i / 10 for i in range(LAYERS)}
    assert summary(few) == {name: value for name, value in few.items() if name != "step"}
    many = {"step": 0, "x": 0.5, "y": 2.0} | {f"x_layer_{i}": [float(i), 48.0 - i] for i in range(48)}
    assert summary(many) == {
        "x": 0.5,
        "y": 2.0,
        "x_layer_min": 0.5,  # the members' are 0 and 1
        "q25/x_layer_min": 0.25,
        "q75/x_layer_min": 0.75,
        "x_layer_max": 47.5,
        "q25/x_layer_max": 47.25,
        "q75/x_layer_max": 47.75,
    }
    assert "x_layer_max" not in summary(many | {"x_layer_3": [None, 1.0]})
    whole = quantities(48)
    shown = bounded_quantities(whole)
    assert len(whole) == 49 * 8
    assert len(shown) == 3 * 8
    assert shown["replay/rows_changed_layer_max"].formula == "the largest replay/rows_changed_layer_N of 48 MoE layers"
    assert shown["replay/rows_changed_layer_max"].unit == "share of tokens"
    assert bounded_quantities(quantities(LAYERS)) == quantities(LAYERS)


def test_settings_are_plain_values_that_every_sink_takes():
    found = hyper(CONFIG | {"empty": None, "deep": {"er": {"on": True}}})
    assert found == {
        "about.name": "x",
        "clip.high": 0.2,
        "optimizer.betas": "(0.9, 0.95)",
        "optimizer.max_grad_norm": "inf",
        "deep.er.on": True,
    }
