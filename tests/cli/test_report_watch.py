"""`report --open` and `--watch`: the page in the browser, and written again while its runs go on."""

import json
import webbrowser

import pytest
from run_folders import LEARNS, made, write

from firstorder.cli.api import watch as watching
from firstorder.cli.main import run
from firstorder.cli.report import files
from firstorder.core.errors import ConfigError

RELOADS = b'http-equiv="refresh"'


@pytest.fixture
def opened(monkeypatch):
    pages = []
    monkeypatch.setattr(webbrowser, "open", lambda page: pages.append(page) or True)
    return pages


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without figures, which say how far the runs are."""

    def quick(runs):
        return {"report.html": f"<html><head></head>{[each.steps for each in runs]}</html>".encode(), "x.csv": b"x\n"}

    monkeypatch.setattr(files, "run_report", quick)


def slept(monkeypatch, *turns):
    """Each pause does the next thing; one pause too many fails."""
    left = list(turns)
    monkeypatch.setattr(watching.time, "sleep", lambda _: left.pop(0)())
    return left


def step(folder, number, ending="\n"):
    for name, values in (("metrics", {"exact/j_pi": LEARNS[number], "reward": 0.5}), ("receipts", {"clip_upper": 0.0})):
        with (folder / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps({"step": number} | values) + ending)


def test_open_shows_the_page_in_the_browser(tmp_path, opened, undrawn):
    folder, out = made(tmp_path / "run", LEARNS), tmp_path / "out"
    assert run(["report", str(folder), "--out", str(out)]) == 0
    assert opened == []
    assert run(["report", str(folder), "--out", str(tmp_path / "other"), "--open"]) == 0
    assert opened == [(tmp_path / "other/report.html").as_uri()]


def test_without_a_browser_the_page_is_named(tmp_path, monkeypatch, undrawn, capsys):
    monkeypatch.setattr(webbrowser, "open", lambda page: False)
    assert run(["report", str(made(tmp_path / "run", LEARNS)), "--out", str(tmp_path / "out"), "--open"]) == 0
    assert "no browser was found; open" in capsys.readouterr().err


def test_a_page_that_is_watched_is_written_again_until_the_run_is_finished(
    tmp_path, monkeypatch, opened, undrawn, capsys
):
    folder, out, seen = made(tmp_path / "run", LEARNS[:2], planned=4), tmp_path / "out", []

    def look(then):
        return lambda: (seen.append((out / "report.html").read_bytes()), then())

    def nothing():
        pass

    left = slept(monkeypatch, look(lambda: step(folder, 2)), look(nothing), look(lambda: step(folder, 3)))
    assert run(["report", str(folder), "--out", str(out), "--watch", "--open"]) == 0
    assert left == []
    assert [b"[2]" in seen[0], b"[3]" in seen[1], seen[2] == seen[1]] == [True] * 3
    assert all(RELOADS in page for page in seen)
    last = (out / "report.html").read_bytes()
    assert b"[4]" in last
    assert RELOADS not in last
    assert len(opened) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(", ")[2] for line in lines] == ["2 of 4 steps", "3 of 4 steps", "4 of 4 steps"]
    assert sorted(file.name for file in out.iterdir()) == ["report.html", "x.csv"]


def test_ctrl_c_ends_a_watch_with_a_page_that_stands_still(tmp_path, monkeypatch, undrawn):
    def interrupt():
        raise KeyboardInterrupt

    folder, out = made(tmp_path / "run", LEARNS[:2], planned=4), tmp_path / "out"
    slept(monkeypatch, interrupt)
    assert run(["report", str(folder), "--out", str(out), "--watch"]) == 0
    page = (out / "report.html").read_bytes()
    assert b"[2]" in page
    assert RELOADS not in page


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path, monkeypatch, undrawn):
    folder, out, seen = made(tmp_path / "run", LEARNS[:2], planned=3), tmp_path / "out", []
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "exact')

    def finish():
        seen.append((out / "report.html").read_bytes())
        lines = (folder / "metrics.jsonl").read_text().splitlines()[:2]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        step(folder, 2)

    slept(monkeypatch, finish)
    assert run(["report", str(folder), "--out", str(out), "--watch"]) == 0
    assert b"[2]" in seen[0]
    assert b"[3]" in (out / "report.html").read_bytes()


def test_a_run_that_has_not_logged_a_whole_step_is_waited_for(tmp_path, monkeypatch, undrawn):
    folder, out = made(tmp_path / "run", LEARNS[:1], planned=1), tmp_path / "out"
    for name in ("metrics", "receipts"):
        (folder / f"{name}.jsonl").unlink()

    def half():
        (folder / "metrics.jsonl").write_text('{"step": 0, ')

    def whole():
        assert not out.exists()
        (folder / "metrics.jsonl").unlink()
        step(folder, 0)

    left = slept(monkeypatch, half, whole)
    assert run(["report", str(folder), "--out", str(out), "--watch"]) == 0
    assert left == []
    assert b"[1]" in (out / "report.html").read_bytes()


def test_an_alarm_alone_is_a_reason_to_write_the_page_again(tmp_path, monkeypatch, undrawn):
    folder = made(tmp_path / "run", LEARNS[:2], planned=3)
    event = {"step": 1, "alarm": "kl high", "quantity": "kl", "event": "start", "members": [0], "fitted": True}
    line = event | {"reading": [1.0], "threshold": [0.5]}
    slept(monkeypatch, lambda: write(folder, "alarms", [line]), lambda: step(folder, 2))
    assert len(list(watching.watch(folder, out=tmp_path / "out"))) == 3


def test_folders_of_many_runs_are_not_watched(tmp_path, capsys):
    (tmp_path / "claims.toml").write_text("[claims]\n")
    assert run(["report", str(tmp_path), "--out", str(tmp_path / "out"), "--watch"]) == 2
    assert "--watch follows runs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_folder_is_refused_not_waited_for(tmp_path):
    with pytest.raises(ConfigError, match="is not a run folder"):
        next(watching.watch(tmp_path / "none", out=tmp_path / "out"))
