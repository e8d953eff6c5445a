"""`firstorder audit` as people run it: a verdict and an exit code, a page, JSON; and hostile folders."""

import json
import os
import pickle
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import firstorder as fo
from firstorder.cli.api.audit import _layers
from firstorder.cli.main import run
from firstorder.core.formats import neutral

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from made import made

SMALL = {
    "schedule.steps": 2,
    "schedule.prompts": 4,
    "schedule.group_size": 8,
    "sim.world": "graph",
    "sim.task": "chain",
    "sim.horizon": 48,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fo.train("minirl-r3", SMALL, out=tmp_path_factory.mktemp("run") / "run", dump="neutral")


@pytest.fixture
def shifted(trained, tmp_path):
    """The same dump, with the rollout engine's log-probs read one row off."""
    for file in sorted((trained.folder / "dump").iterdir()):
        samples = neutral.read([file], neutral.Options())
        moved = [replace(s, logp_mu=torch.where(s.mask, s.logp_mu.roll(1), 0.0)) for s in samples]
        neutral.write(tmp_path / file.name, moved, neutral.Run(experts=8))
    return tmp_path


def test_a_run_of_the_simulator_is_normal(trained, tmp_path, capsys):
    assert run(["audit", str(trained.folder / "dump"), "--json", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().out.startswith("Normal: 64 responses with")
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["schema"] == "firstorder.audit/1"
    result = document["result"]
    assert result["verdict"]["fault"] is None
    assert result["counts"]["responses"] == 64
    (numbers,) = (table for table in result["tables"] if table["name"] == "numbers")
    (kl,) = (row for row in numbers["rows"] if row["quantity"] == "kl")
    assert kl["value"]["low"] < kl["value"]["value"] < kl["value"]["high"]
    assert kl["value"]["value"] == pytest.approx(
        sum(s["kl"] * s["response_length"] for s in trained.steps) / sum(s["response_length"] for s in trained.steps),
        rel=1e-9,
    )


def test_a_fault_is_named_and_exits_with_1(shifted, capsys):
    assert run(["audit", str(shifted)]) == 1
    assert capsys.readouterr().out.startswith("Off by one")


def test_a_page_and_its_data_are_written(trained, tmp_path):
    assert run(["audit", str(trained.folder / "dump"), "--out", str(tmp_path / "page")]) == 0
    names = {file.name for file in (tmp_path / "page").iterdir()}
    assert {"report.html", "numbers.csv", "by-position.svg", "weights.csv"} <= names
    assert "http://" not in (tmp_path / "page/report.html").read_text().replace("http://www.w3.org", "")


def test_from_python_a_result_prints_tabulates_and_draws(trained):
    result = fo.audit(trained.folder / "dump", replay="R3")
    assert str(result).startswith("Normal")
    assert "kl" in set(result.to_pandas()["quantity"])
    assert result.plot().axes


def hostile(folder, name):
    """One bad dump."""
    file = folder / name
    if name == "truncated.parquet":
        neutral.write(file, made(steps=1))
        file.write_bytes(file.read_bytes()[:-40])
    elif name == "step_1/rank_0.jsonl":
        file.parent.mkdir()
        file.write_text('{"schema_version": 1, "step": 1, "rank": 0, "token_ids": [1, 2')
    elif name == "train_data_step1.jsonl":
        file.write_text("[" * 100_000 + "\n")
    elif name == "rollout_data/0.pt":
        file.parent.mkdir()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
            bomb.writestr("archive/data.pkl", b"\0" * (64 << 20))
    elif name == "global_step_1_training_input.pkl":
        file.write_bytes(pickle.dumps(Order("touch " + str(folder / "owned"))))
    elif name == "tq_batch.pt":
        file.write_bytes(b"PK\x03\x04nothing of the kind")
    elif name == "gen_batch.dp":
        file.write_bytes(pickle.dumps({"a": 1})[:-3])
    return file


class Order:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


BAD = (
    "truncated.parquet",
    "step_1/rank_0.jsonl",
    "train_data_step1.jsonl",
    "rollout_data/0.pt",
    "global_step_1_training_input.pkl",
    "tq_batch.pt",
    "gen_batch.dp",
)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_hostile_dump_is_refused_in_one_line_and_nothing_is_written(tmp_path, capsys, name, given):
    folder = tmp_path / "in"
    folder.mkdir()
    file = hostile(folder, name)
    before = sorted(tmp_path.rglob("*"))
    out, document = tmp_path / "page", tmp_path / "a.json"
    path = file if given == "file" else folder
    assert run(["audit", str(path), "--out", str(out), "--json", str(document)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(folder) in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "audit takes at least one file or folder"),
        (["nowhere"], "nowhere cannot be read"),
        (["x", "--format", "verll"], "--format must be one of"),
        (["x", "--layers", "3-"], "--layers must be numbers and ranges such as"),
        (["x", "--layers", "9-3"], "--layers must be numbers and ranges such as"),
        (["x", "--replay", "R4"], "--replay must be one of disabled, R2, R3"),
        (["x", "--fill", "ones"], "--fill must be one of"),
        (["x", "--experts", "0"], "--experts must be at least 1"),
        (["x", "--self-test"], "PATH does nothing beside --self-test"),
        (["--self-test", "--follow"], "--follow does nothing beside --self-test"),
        (["x", "--follow", "--out", "new"], "--out does nothing beside --follow"),
        (["x", "--follow", "--json", "-"], "--json does nothing beside --follow"),
        (["x", "--tokenizer", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    neutral.write(tmp_path / "x", made(steps=1))
    assert run(["audit", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_layers_are_numbers_and_ranges():
    assert _layers("3-5, 8,4") == (3, 4, 5, 8)
    assert _layers(None) is None
