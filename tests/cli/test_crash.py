"""What nobody expected is one line; interruptions and an output that is gone as well."""

import os
import signal
import subprocess
import sys
import time

import pytest

from firstorder.cli import crash
from firstorder.cli.api import measure
from firstorder.cli.main import run

START = [sys.executable, "-m", "firstorder.cli.entry"]


def broken(*_):
    raise KeyError("a mistake\nof ours")


def test_a_fault_of_ours_is_one_line_with_its_traceback_in_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(measure, "compose", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert crash.guarded(run, ["measure", "minirl"]) == crash.FAULT == 70
    err = capsys.readouterr().err
    (file,) = tmp_path.iterdir()
    assert err.count("\n") == 1
    assert f"a fault of firstorder itself, KeyError: 'a mistake\\nof ours'; its traceback is in {file}" in err
    assert "in broken" in file.read_text()


def test_a_fault_of_ours_shows_its_traceback_where_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(measure, "compose", broken)
    monkeypatch.setenv(crash.SHOW, "1")
    assert crash.guarded(run, ["measure", "minirl"]) == crash.FAULT
    assert "in broken" in capsys.readouterr().err


def test_the_guard_hides_nothing_from_tests(monkeypatch):
    monkeypatch.setattr(measure, "compose", broken)
    with pytest.raises(KeyError):
        run(["measure", "minirl"])


def test_memory_that_ends_is_said(monkeypatch, capsys):
    def full(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(measure, "compose", full)
    assert run(["measure", "minirl"]) == 2
    assert "memory ended; lower the sizes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("a\0b", "argument 2 holds a NUL"),
        ("\udc80", "argument 2 is not valid UTF-8"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_no_file_can_be_called_is_one_line(argument, said, capsys):
    assert run(["measure", argument]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("target", ["/proc/x", "/dev/full"])
def test_a_file_that_takes_nothing_is_one_line(target, capsys):
    tiny = ["--set", "sim.horizon=1", "--set", "sim.prompts=1", "--set", "sim.vocab=3", "--set", "sim.width=2"]
    assert run(["measure", "minirl", *tiny, "--json", target]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"firstorder: {'--json ' if target == '/proc/x' else 'cannot write '}{target}")
    assert err.count("\n") == 1
    assert ("value_error" in out) == (target == "/dev/full")  # the result is shown, whatever becomes of the file


def test_an_output_that_is_full_or_gone_is_no_traceback():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*START, "recipes", "minirl"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot write to standard output: No space left on device" in done.stderr


@pytest.mark.parametrize("delay", [0.1, 0.5])
def test_an_interruption_during_the_imports_is_one_line(delay, tmp_path):
    # what is imported takes as long as it needs here, whatever the machine
    slow = f"import time\nopen({str(tmp_path / 'there')!r}, 'w').close()\ntime.sleep(60)\n"
    (tmp_path / "typer.py").write_text(slow)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen([*START, "recipes"], stderr=subprocess.PIPE, text=True, env=env)
    while not (tmp_path / "there").exists():
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (crash.INTERRUPTED, "firstorder: interrupted\n")
