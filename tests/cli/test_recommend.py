import json
from dataclasses import replace
from importlib import import_module

import pytest

import firstorder as fo
from firstorder.cli.api import advised
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.sim.trials import pointed
from firstorder.sim.trials.atlas import Point, read
from firstorder.sim.trials.regime import Regime

PUBLISHED = {"kl": 1.5e-3, "flips": 0.10, "horizon": 8192}
LINE = ["recommend", "--kl", "1.5e-3", "--flips", "0.1"]


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_the_published_regime_is_answered_beside_the_papers_answer(n):
    found = fo.recommend(**PUBLISHED, n=n)
    replay = found.advice["replay"]
    assert found.paper["replay"] == advised.PAPER[n]
    assert found.paper["agrees"] == (replay == advised.PAPER[n])
    assert (found.advice["clip"] == "clip") == (n > 1)
    assert found.advice["correction"] == "theta/mu"
    assert f"N = {n}: {advised._replay(advised.PAPER[n])}" in str(found)
    best = max(row["score"] for row in found.options if row["correction"] != "theta/old" and row["clip"] is not None)
    assert found.advice["score"] <= best


def test_far_from_the_papers_engines_its_answer_is_not_shown():
    assert fo.recommend(kl=2e-2, flips=0.01, n=2).paper is None
    assert fo.recommend(**PUBLISHED, n=3).paper is None


def test_an_answer_names_what_was_given_and_what_is_a_default():
    found = fo.recommend(kl=1.5e-3, flips=0.1, n=2)
    assert found.given == {"kl": "option", "flips": "option", "n": "option"} | dict.fromkeys(
        ("horizon", "group", "entropy", "step"), "default"
    )
    assert "T = 8,192 (default)" in " ".join(str(found).split())


def test_an_answer_is_a_table_a_document_and_a_figure(tmp_path):
    file = tmp_path / "answer.json"
    assert run([*LINE, "--n", "4", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["schema"] == "firstorder.recommend/1"
    found = fo.recommend(kl=1.5e-3, flips=0.1, n=4)
    assert document["result"] == found.to_dict()["result"]
    assert [row["option"] for row in found.records()] == [row["option"] for row in document["result"]["options"]]
    figure = found.plot()
    assert len(figure.axes) == 4 * len({key[1] for key in read().cells})
    for word in ("recommended", "regime", "expected", "how sure", "changes", "training", "the paper"):
        assert word in str(found)


def test_the_command_of_an_answer_is_one_that_runs():
    words = fo.recommend(**PUBLISHED, n=4).advice["command"].split()
    compose = import_module("firstorder.cli.api.compose").compose
    made = compose(words[2], words[4::2]).recipe
    assert made.schedule.minibatches == 4
    assert made.schedule.group_size == 16


def test_beyond_the_map_an_answer_says_so():
    found = fo.recommend(kl=0.5, flips=0.1, n=64)
    assert not found.sure["inside"]
    assert set(found.sure["outside"]) == {"kl", "updates"}
    assert "outside the map" in str(found)


def test_where_the_answer_changes_another_recipe_is_recommended():
    found = fo.recommend(**PUBLISHED, n=4)
    assert found.changes
    mine = (found.advice["replay"], found.advice["correction"])
    for axis, sides in found.changes.items():
        name = "n" if axis == "updates" else axis
        for side in sides.values():
            value = round(side["at"]) if axis in ("updates", "horizon", "group") else side["at"]
            there = fo.recommend(**{**PUBLISHED, "n": 4, name: value})
            assert there.advice["option"] == side["advice"]
            assert (there.advice["replay"], there.advice["correction"]) != mine


def run_folder(folder):
    folder.mkdir()
    lines = [
        {"step": s, "k3_kl": 2e-3, "kl": 1.0, "route/flip_rate": [0.05, 0.07], "update/entropy": 0.9} for s in (0, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.toml").write_text("[schedule]\nminibatches = 2\ngroup_size = 8\n[sim]\nhorizon = 512\n")
    return str(folder)


def test_the_regime_of_a_run_is_read_from_its_folder(tmp_path):
    match = run_folder(tmp_path / "run")
    found = fo.recommend(match=match, group=4)
    wanted = {"kl": 2e-3, "flips": 0.06, "n": 2, "horizon": 512, "group": 4, "entropy": 0.9, "step": 1e-4}
    assert dict(found.point) == pytest.approx(wanted)
    assert found.given["kl"] == f"of {match}"
    assert found.given["group"] == "option"


def test_the_regime_of_a_probe_is_read_from_its_json(tmp_path):
    point = {"point": {}, "routes": {"route/flip_rate": 0.008}, "live": {"k3_kl": 1.4e-3}, "R3": {}}
    file = tmp_path / "probe.json"
    file.write_text(json.dumps({"schema": "firstorder.probe/1", "result": [point]}))
    found = fo.recommend(match=str(file))
    assert (found.point["kl"], found.point["flips"]) == (1.4e-3, 0.008)
    file.write_text(json.dumps({"schema": "firstorder.probe/1", "result": [point, point]}))
    with pytest.raises(ConfigError, match="a probe of 2 points"):
        fo.recommend(match=str(file))


def test_the_regime_of_an_audit_is_read_from_its_json(tmp_path):
    rows = [
        {"quantity": "k3_kl", "value": {"value": 5e-3, "low": 4e-3, "high": 6e-3}},
        {"quantity": "route/flip_rate", "value": {"value": 0.2, "low": None, "high": None}},
        {"quantity": "response_length", "value": {"value": 900.5, "low": None, "high": None}},
    ]
    document = {"schema": "firstorder.audit/1", "options": {"minibatches": 8}}
    document["result"] = {"tables": [{"name": "numbers", "rows": rows}]}
    file = tmp_path / "audit.json"
    file.write_text(json.dumps(document))
    found = fo.recommend(match=str(file))
    wanted = {"kl": 5e-3, "flips": 0.2, "n": 8, "horizon": 900.5, "group": 16, "entropy": 0.7, "step": 1e-4}
    assert dict(found.point) == wanted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--flips", "0.1"], "--kl is needed"),
        (["--kl", "0", "--flips", "0.1"], "--kl must be between"),
        (["--kl", "nan", "--flips", "0.1"], "--kl must be between"),
        (["--kl", "0.1", "--flips", "1.5"], "--flips must be between"),
        (["--kl", "0.1", "--flips", "0.1", "--n", "0"], "--n must be between"),
        (["--match", "nowhere"], "is no run, probe or audit"),
        (["--match", "."], "holds no metrics.jsonl"),
        (["--match", "/dev/zero"], "is no run, probe or audit"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run(["recommend", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


@pytest.mark.parametrize("text", ["", "[]", "null", '{"schema": 1}', '{"schema": "firstorder.probe/1"}', "[" * 10_000])
def test_a_file_that_is_no_evidence_is_refused(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="is no run, probe or audit"):
        fo.recommend(match=str(file))


def test_a_run_without_a_number_that_is_needed_is_refused(tmp_path):
    match = run_folder(tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 0, "kl": 0.001}\n')
    with pytest.raises(ConfigError, match=r"holds none, so --flips is needed"):
        fo.recommend(match=match)
    assert fo.recommend(match=match, flips=0.1).point["kl"] == 0.001


def test_an_exact_answer_is_measured_at_the_point(monkeypatch):
    monkeypatch.setattr(pointed, "SEEDS", range(2))
    found = fo.recommend(kl=2e-3, flips=0.035, horizon=64, n=1, entropy=1.39, exact=True)
    assert found.document["exact"]
    assert "measured at this point, 2 policies" in str(found)
    assert found.advice["replay"] == "none"
    assert 0 < found.advice["error"] < 0.2


def test_engines_that_do_not_exist_are_not_measured(monkeypatch):
    monkeypatch.setattr(pointed, "SEEDS", range(2))
    point = Point(kl=1e-8, flips=0.9, updates=1, horizon=64, group=16, entropy=0.7, step=1e-4)
    with pytest.raises(ConfigError, match="no engines of this world have a KL"):
        pointed.at(point)


def test_entropies_are_met_by_right_tokens(monkeypatch):
    asked = []

    def fitted(regime, seeds):
        asked.append(regime)
        raise KeyboardInterrupt

    monkeypatch.setattr(pointed, "fitted", fitted)
    point = Point(kl=1e-3, flips=0.1, updates=1, horizon=64, group=16, entropy=1.0, step=1e-4)
    for entropy, right in ((0.05, 1), (0.7, 2), (1.4, 4), (9.0, 6)):
        with pytest.raises(KeyboardInterrupt):
            pointed.at(replace(point, entropy=entropy))
        assert asked[-1] == Regime(kl=1e-3, flips=0.1, horizon=64, right=right, step=1e-4)
