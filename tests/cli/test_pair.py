"""`firstorder probe A B`: two files or two functions, one line and an exit code."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import firstorder as fo
from firstorder.cli.main import run
from firstorder.core.formats import neutral
from firstorder.core.formats.sample import Sample

sys.path.insert(0, str(Path(__file__).parents[1] / "audit"))

from toy_engines import Engine

ROLLOUT, TRAINER = Engine(noise=0.02, salt=1), Engine(noise=0.02)
MODULE = """
from toy_engines import Engine
def rollout():
    return Engine(noise=0.02, salt=1).sample()
def lists():
    return {name: x.tolist() for name, x in rollout().items() if name != "routes"}
def train(tokens, lengths, temperature):
    return Engine(noise=0.02).score(tokens, lengths, temperature)
def hot(tokens, lengths, temperature):
    return Engine(noise=0.02).score(tokens, lengths, 1.4 * temperature)
def broken(tokens, lengths, temperature):
    raise RuntimeError("no model\\nand more")
def half():
    return {"tokens": [[1, 2]], "mask": [[0, 1]]}
nothing = 3
"""


def rows(engine, batch):
    """The responses of a batch with the log-probs of an engine: tokens, mask, log-probs."""
    logp = torch.where(batch["mask"], engine.logp(batch["tokens"]), 0.0)
    for tokens, mask, column in zip(batch["tokens"], batch["mask"], logp, strict=True):
        length = int(mask.nonzero().max()) + 1
        yield tokens[:length], mask[:length], column[:length]


def lines(engine, batch, path, order=slice(None)):
    written = [
        {"token_ids": t.tolist(), "logprobs": [x if on else None for x, on in zip(c.tolist(), m, strict=True)]}
        for t, m, c in rows(engine, batch)
    ]
    path.write_text("\n".join(map(json.dumps, written[order])) + "\n")


def dump(engine, batch, path, name):
    samples = [Sample(source="", step=0, tokens=t, mask=m, **{name: c}) for t, m, c in rows(engine, batch)]
    neutral.write(path, samples)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = ROLLOUT.sample()
    lines(ROLLOUT, batch, tmp_path / "rollout.jsonl")
    lines(TRAINER, batch, tmp_path / "trainer.jsonl", slice(None, None, -1))
    lines(replace(TRAINER, moved=0.3), batch, tmp_path / "other.jsonl")
    dump(TRAINER, batch, tmp_path / "trainer.parquet", "logp_old")
    lines(TRAINER, TRAINER.sample(seed=9), tmp_path / "strange.jsonl")
    (tmp_path / "engines_of_mine.py").write_text(MODULE)
    sys.modules.pop("engines_of_mine", None)
    return tmp_path


@pytest.mark.parametrize("trainer", ["trainer.jsonl", "trainer.parquet"])
def test_two_files_are_matched_by_their_tokens(here, capsys, trainer):
    assert run(["probe", "rollout.jsonl", trainer]) == 0
    said = capsys.readouterr().out
    assert said.startswith("pass: mean |D| ")
    assert "24 responses by the rollout engine's log-probs of rollout.jsonl and " in said


def test_a_cause_is_named_in_one_line_with_code_1(here, capsys):
    assert run(["probe", "rollout.jsonl", "other.jsonl", "--json", "out.json"]) == 1
    assert capsys.readouterr().out.startswith("other weights: log-probs differ by ")
    written = json.loads(Path("out.json").read_text())
    assert (written["schema"], written["sides"]) == ("firstorder.pair/1", ["rollout.jsonl", "other.jsonl"])
    assert (written["result"]["passed"], written["result"]["cause"]) == (False, "other weights")
    assert run(["probe", "rollout.jsonl", "other.jsonl", "--limit", "3"]) == 0


@pytest.mark.parametrize(
    ("rollout", "train", "code", "said"),
    [
        ("rollout", "train", 0, "pass: mean"),
        ("lists", "train", 0, "pass: mean"),
        ("rollout", "hot", 1, r"temperature: .* at a temperature of 0\.71"),
    ],
)
def test_two_functions_are_called(here, capsys, rollout, train, code, said):
    assert run(["probe", f"engines_of_mine:{rollout}", f"engines_of_mine:{train}"]) == code
    assert re.match(said, capsys.readouterr().out)


WRONG = {
    "nothing in common": (
        ["rollout.jsonl", "strange.jsonl"],
        "share no response: none of 24 has the tokens of one of 24",
    ),
    "a file and a function": (["rollout.jsonl", "engines_of_mine:train"], "a pair is two files or two functions"),
    "no such file": (["rollout.jsonl", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
    "no such function": (["engines_of_mine:rollout", "engines_of_mine:trian"], "has no attribute 'trian'"),
    "no such module": (["no_such_module:a", "no_such_module:b"], "No module named 'no_such_module'"),
    "no function": (
        ["engines_of_mine:nothing", "engines_of_mine:train"],
        "engines_of_mine:nothing is no function but int",
    ),
    "a function that fails": (
        ["engines_of_mine:rollout", "engines_of_mine:broken"],
        "engines_of_mine:broken raised RuntimeError: no model; call it by itself",
    ),
    "no log-probs": (["engines_of_mine:half", "engines_of_mine:train"], "got no `logp_mu`"),
    "settings of a folder": (
        ["rollout.jsonl", "trainer.jsonl", "--set", "vllm.dtype=float32"],
        "leave it out for a pair",
    ),
    "no limit": (["rollout.jsonl", "trainer.jsonl", "--limit", "nan"], "limit must be above 0 and finite, got nan"),
    "no temperature": (["rollout.jsonl", "trainer.jsonl", "--temperature", "0"], "temperature must be above 0"),
    "a module that fails": (["fails:a", "fails:b"], "fails:a: division by zero; give package.module:function"),
    "a line of another length": (["rollout.jsonl", "short.jsonl"], "short.jsonl line 1: `logprobs` has 1 entries"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_pair_is_refused_in_one_line(here, capsys, name):
    (here / "short.jsonl").write_text('{"token_ids": [1, 2], "logprobs": [null]}\n')
    (here / "fails.py").write_text("1 / 0")
    arguments, remedy = WRONG[name]
    assert run(["probe", *arguments]) == 2
    said = capsys.readouterr().err
    assert remedy in said
    assert len(said.splitlines()) == 1


def test_python_has_the_same(here):
    result = fo.probe("rollout.jsonl", here / "trainer.jsonl")
    assert (result.passed, result.cause) == (True, None)
    assert str(result).startswith("pass: ")
    assert result.records()[0]["tokens"] == result.check.tokens
    assert result.to_dict()["result"]["line"] == result.check.line
    assert result.plot()
    hot = fo.probe(ROLLOUT.sample, replace(TRAINER, dropout=0.3).score, limit=0.1)
    assert hot.cause == "not deterministic"
