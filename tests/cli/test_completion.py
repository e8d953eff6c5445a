"""What a shell completes, asked as shells ask."""

import os
import shlex
import subprocess
import sys

import pytest

from firstorder.cli import complete
from firstorder.cli.examples import EXAMPLES
from firstorder.cli.main import app, run
from firstorder.core.settings.toml import shipped
from firstorder.sim.claims import CLAIMS
from firstorder.sim.claims.training import TRAINING
from firstorder.sim.studies import STUDIES

CLIP_KINDS = "none minirl ppo dual gspo cispo sapo tv kl m2po ctpo gmpo"
ASKED = {  # words as bash breaks them, and what it is answered
    "measure grp": "grpo grpo-entropy grpo-kl",
    "recipes grpo --diff tis-": "tis-mean-one tis-rejection-geometric tis-rejection-k3 tis-two-sided",
    "measure grpo --set clip.k": " ".join(f"clip.kind={kind}" for kind in CLIP_KINDS.split()),
    "measure grpo --set clip.kind =": CLIP_KINDS,
    "measure grpo --set clip.kind = p": "ppo",
    "sweep grpo --set clip.c": "clip.cap=3.0",
    "train grpo --set vllm.prefix_caching = t": "true",
    "validate --only two": "two-errors",
    "study re": "regimes replay",
    "keys sim.training": "sim.training_numerics",
    "keys clip.h": "clip.high",
    "measure grpo --set nothing.l": "",
}


def asked(words, shell="bash", code=""):
    """What the console script answers, and whether it took torch to say so."""
    words = ["firstorder", *words.split(" ")]
    asks = {
        "bash": {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": shlex.join(words)},
    }
    script = f"{code}import sys; from firstorder.cli.entry import main; sys.argv = ['firstorder']; main()"
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | asks[shell] | {"_FIRSTORDER_COMPLETE": f"complete_{shell}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("words", ASKED)
def test_bash_is_answered_what_may_stand_there(words, monkeypatch, capsys):
    given = ["firstorder", *words.split(" ")]
    monkeypatch.setenv("_FIRSTORDER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(given))
    monkeypatch.setenv("COMP_CWORD", str(len(given) - 1))
    with pytest.raises(SystemExit) as done:
        run([])
    assert not done.value.code
    found = capsys.readouterr().out.split()
    if words.startswith("keys sim"):
        found = found[:1]
    assert found == ASKED[words].split()


def test_a_shell_is_answered_without_torch():
    watched = "import atexit, os, sys; atexit.register(lambda: 'torch' in sys.modules and os._exit(9)); "
    for words in ("measure mini", "validate --only ", "study ", "train grpo --set sim."):
        done = asked(words, code=watched)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip()


def test_zsh_keeps_the_word_whole():
    assert "clip.kind=ppo" in asked("measure grpo --set clip.kind=p", "zsh").stdout


def test_the_script_of_bash_completes(tmp_path):
    (tmp_path / "firstorder").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m firstorder "$@"\n')
    (tmp_path / "firstorder").chmod(0o755)
    shown = subprocess.run(
        [sys.executable, "-m", "firstorder", "--show-completion", "bash"],
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    script = f"""{shown}
COMP_WORDS=(firstorder measure grpo --set clip.kind = mini)
COMP_CWORD=6
_firstorder_completion firstorder
echo "${{COMPREPLY[@]}}"
"""
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.stdout.split() == ["minirl"], done.stderr


def test_ids_that_are_read_are_those_that_are_declared():
    assert sorted(complete.declared("claims")) == sorted(claim.id for claim in (*CLAIMS, *TRAINING))
    assert sorted(complete.declared("studies")) == sorted(study.id for study in STUDIES)


def test_a_recipe_may_be_a_file_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/loose.toml").touch()
    (tmp_path / "mine/notes.txt").touch()
    assert complete.recipes("min") == [*(name for name in shipped() if name.startswith("min")), "mine/"]
    assert complete.recipes("mine/") == ["mine/loose.toml"]
    assert complete.recipes("nowhere/x") == []


def test_every_command_shows_examples_in_its_help(capsys):
    assert set(EXAMPLES) == {command.name for command in app.registered_commands}
    for name, lines in EXAMPLES.items():
        assert run([name, "--help"]) == 0
        printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
        assert set(lines) <= set(printed)
        assert all(line.split()[:2] == ["firstorder", name] for line in lines)
