"""A server that does not start: one line with the cause and the place of vLLM's log, by real processes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from firstorder.backends.vllm.server import cause


def started(*words):
    """A server's process that ends by itself."""
    command = [sys.executable, "-m", "firstorder.backends.vllm.serve", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "cannot read .*config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 9), "model.safetensors"),
    ],
)
def test_a_folder_that_is_no_model_is_one_line_before_vllm_starts(tmp_path, shape, write_model, damage, message):
    damage(write_model(tmp_path, shape))
    ended = started(tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert re.fullmatch(rf"firstorder: .*{message}.*\n", ended.stderr), ended.stderr


def test_what_vllm_itself_refuses_is_a_line_with_the_cause_and_the_log(tmp_path, shape, write_model):
    ended = started(write_model(tmp_path, shape), "--set", "dtype=float32", "--set", "max_tokens=100000")
    assert ended.returncode == 1
    assert ended.stdout == ""
    first, last = ended.stderr.splitlines()
    log = Path(first.removeprefix("vLLM writes to "))
    assert "max_model_len" in log.read_text()
    assert re.fullmatch(rf"firstorder: vLLM's server ended: .*max_model_len.*; its log is {log}", last)
    log.unlink()


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("", "nothing was written"),
        ("loading\nKilled\n", "Killed"),
        ("Traceback\n  File x\nValueError: too long\n", "ValueError: too long"),
        (
            "(EngineCore pid=7) ERROR 11-25 06:00:00 [core.py:1] RuntimeError: shapes differ\n"
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n",
            "RuntimeError: shapes differ",
        ),
        (
            "api_server.py: error: argument --port: invalid int value: 'x'\n",
            "error: argument --port: invalid int value: 'x'",
        ),
    ],
)
def test_the_cause_is_what_was_raised_first_not_what_followed(written, found):
    assert cause(written) == found
