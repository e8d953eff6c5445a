"""Programs run with limits: what passes, what is stopped, and what is refused before anything runs."""

import os
import time
from pathlib import Path

import pytest

from firstorder.backends.tasks import sandbox
from firstorder.backends.tasks.sandbox import Limits, check, passed, passed_by
from firstorder.core.errors import ConfigError, DataError

ISOLATIONS = ["full", "limits"]
CONNECT = "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)"


def limits(isolation="full", seconds=5.0):
    return Limits(seconds=seconds, memory_mib=256, isolation=isolation)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_each_test_is_judged_by_itself(isolation):
    program = "seen = []\ndef f(x):\n    seen.append(x)\n    return x + len(seen)"
    tests = [
        "assert f(1) == 2",
        "assert f(1) == 3",
        "assert f(5) == 6",
        "f(",
        "import json; assert json.loads('1') == f(0)",
    ]
    assert passed(program, tests, limits(isolation)) == [True, False, True, False, True]


def test_threads_and_event_loops_run():
    program = "import asyncio, threading\nasync def f():\n    return 3"
    tests = ["assert asyncio.run(f()) == 3", "t = threading.Thread(target=len, args=([],)); t.start(); t.join()"]
    assert passed(program, tests, limits()) == [True, True]


def test_a_program_works_in_a_folder_of_its_own():
    program = "from pathlib import Path\nPath('kept.txt').write_text('x')"
    assert passed(program, ["assert Path('kept.txt').read_text() == 'x'", "print(Path.cwd()); input()"], limits()) == [
        True,
        False,
    ]
    assert not Path("kept.txt").exists()


STOPPED = {
    "an endless loop": "while True:\n    pass",
    "a loop that catches everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "sleep": "import time\ntime.sleep(60)",
    "a fork bomb": "import os\nwhile True:\n    os.fork()",
    "a bomb of threads": "import threading, time\nwhile 1: threading.Thread(target=time.sleep, args=(60,)).start()",
    "a memory hog": "held = bytearray(2**30)",
    "a file that grows": "with open('grown', 'wb') as f:\n    while True:\n        f.write(bytes(2**20))",
    "the network": CONNECT,
    "another program": "import subprocess\nsubprocess.run(['true'], check=True)",
    "a signal to whoever judges": "import os\nos.kill(os.getppid(), 9)",
    "limits of whoever judges": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (9, 9))",
    "an end before the test": "import os\nos._exit(0)",
    "a polite end before the test": "raise SystemExit",
    "a crash": "import ctypes\nctypes.string_at(0)",
}


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("name", STOPPED)
def test_what_must_be_stopped_is_stopped_and_passes_nothing(name, isolation):
    started = time.monotonic()
    assert passed(STOPPED[name], ["pass", "pass"], limits(isolation, seconds=0.5)) == [False, False]
    assert time.monotonic() - started < 20


def test_what_is_stopped_does_not_stop_the_tests_after_it():
    assert passed("", ["while True: pass", "pass"], limits(seconds=0.5)) == [False, True]


@pytest.mark.parametrize("act", ["open({!r}, 'w')", "import os; os.chmod({!r}, 0)", "import os; os.truncate({!r}, 0)"])
def test_nothing_outside_is_written(tmp_path, act):
    kept = tmp_path / "kept"
    kept.write_text("x")
    act = act.format(str(kept))
    assert passed("", [act, f"import os; os.unlink({str(kept)!r})"], limits()) == [False, False]
    assert kept.read_text() == "x"
    assert os.stat(kept).st_mode & 0o777


def test_nothing_outside_is_read(tmp_path):
    (tmp_path / "tests.jsonl").write_text("secret")
    test = f"print(open({str(tmp_path / 'tests.jsonl')!r}).read())"
    assert passed("", [test, "print(open('/proc/self/environ').read())"], limits()) == [False, False]
    # what the weaker isolation gives up, and no more
    assert passed("", [test, CONNECT], limits("limits")) == [True, False]


def test_the_environment_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("A_SECRET", "x")
    assert passed("import os", ["assert 'A_SECRET' not in os.environ"], limits()) == [True]


def test_programs_are_judged_side_by_side_and_in_order():
    programs = [f"x = {i}" for i in range(4)]
    assert passed_by(programs, [["assert x == 2"]] * 4, limits()) == [[False], [False], [True], [False]]


def test_nothing_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    assert passed("open('x', 'w').write('x')", ["assert len(open('x').read()) == 1"], limits()) == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_refuses_is_named_with_the_remedy(monkeypatch):
    old = "from firstorder.backends.tasks.jail import confine; confine.LANDLOCK_CREATE = 9999; main()"
    monkeypatch.setattr(sandbox, "START_JAIL", sandbox.START_JAIL.replace("; main()", f"; {old}"))
    with pytest.raises(DataError, match="the sandbox does not start: syscall: Function not implemented"):
        passed("", ["pass"], limits())
    with pytest.raises(ConfigError, match=r"task.isolation = full: .*; task.isolation = limits does without Landlock"):
        check(limits())
    check(limits("limits"))


def test_too_little_memory_is_named():
    with pytest.raises(ConfigError, match=r"it passes nothing; raise task.memory_mib"):
        check(Limits(seconds=5.0, memory_mib=1, isolation="limits"))


def test_a_jail_that_hangs_is_ended(monkeypatch):
    hangs = "import time\nprint('ready', flush=True)\nprint('1', end='', flush=True)\ntime.sleep(60)"
    monkeypatch.setattr(sandbox, "START_JAIL", hangs)
    monkeypatch.setattr(sandbox, "START", 1.0)
    assert passed("", ["pass", "pass"], limits(seconds=0.1)) == [True, False]
