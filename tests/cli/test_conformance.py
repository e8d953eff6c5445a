"""`firstorder conformance`: the vectors written, answers checked, peers held against them, and the peers' record."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from firstorder.backends.peers import environment
from firstorder.backends.peers.compare import KNOWN, MISSING, ours, outcomes
from firstorder.backends.peers.inputs import batches, gradient
from firstorder.backends.peers.rows import PINS, ROWS, Row
from firstorder.cli.api.conformance import conformance, conformance_vectors
from firstorder.cli.api.peers import conformance_peers
from firstorder.cli.main import run
from firstorder.core.conformance.shipped import shipped, source
from firstorder.core.conformance.terms import FRAMEWORKS, TERMS
from firstorder.core.errors import ConfigError

ROOT = Path(__file__).parents[2]
VECTORS = shipped()
RECORD = json.loads((ROOT / "tests/records/peers.json").read_text())
HEAD = {"schema": VECTORS["schema"], "version": VECTORS["version"], "framework": "other"}


@pytest.fixture
def answers(tmp_path):
    """Writes a file of answers, the vectors' own unless changed."""

    def write(change=lambda tree: None):
        tree = json.loads(json.dumps(VECTORS["expected"]))
        change(tree)
        path = tmp_path / "answers.json"
        path.write_text(json.dumps({**HEAD, "answers": tree}))
        return str(path)

    return write


def printed(result):
    text = io.StringIO()
    result.print(Console(file=text, width=160, color_system=None))
    return text.getvalue()


def wrong(tree):
    tree["methods"]["gspo"]["masks"]["gradient"][1][2] += 1e-3


def test_export_writes_the_shipped_vectors_byte_for_byte(tmp_path, capsys):
    assert run(["conformance", "export", "--json", str(tmp_path / "v.json")]) == 0
    assert (tmp_path / "v.json").read_text() == source()
    assert "methods, 12 terms, 9 cases, version" in capsys.readouterr().out.replace("\n", " ")
    assert run(["conformance", "export", "--json", "-"]) == 0
    assert capsys.readouterr().out == source()


def test_answers_that_agree_end_with_0(answers, capsys):
    assert run(["conformance", "check", answers()]) == 0
    assert "all agree" in capsys.readouterr().out


def test_a_difference_ends_with_1_and_is_named(answers, tmp_path, capsys):
    target = tmp_path / "check.json"
    assert run(["conformance", "check", answers(wrong), "--json", str(target)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "largest difference, 1e+04 tolerances: gradient of method gspo, case masks, response 1, token 2: got" in out
    document = json.loads(target.read_text())
    assert (document["schema"], document["vectors"], document["agree"]) == ("firstorder.conformance-check/1", 2, False)
    (row,) = [row for row in document["rows"] if not row["agrees"]]
    assert (row["name"], row["case"], row["output"], row["place"]) == ("gspo", "masks", "gradient", [1, 2])


def test_a_file_that_is_no_answer_ends_with_2_and_a_line(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"answers": NaN}')
    assert run(["conformance", "check", str(tmp_path / "a.json")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "check needs the file"),
        (["check", "a.json", "--env", "x"], "does not read --env"),
        (["export", "v.json"], "does not read a file"),
        (["peers", "v.json"], "does not read a file"),
        (["peers", "--python", "p", "--env", "e"], "give one of the two"),
        (["chek", "a.json"], "chek"),
    ],
)
def test_arguments_that_an_action_does_not_read_are_refused(arguments, message, capsys):
    assert run(["conformance", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_result_prints_counts_rows_and_draws(answers):
    result = conformance(answers(wrong))
    assert not result.passed
    assert result.largest.path == ("methods", "gspo", "masks", "gradient")
    assert re.search(r"gspo +9/9 +8/9 +9/9 +9/9 +masks", printed(result))
    assert len(result.records()) == len(result.compared)
    assert result.plot().axes
    assert json.loads(json.dumps(result.to_dict()))["framework"] == "other"


def test_an_infinite_difference_is_null_in_json(answers):
    result = conformance(answers(lambda tree: tree["metrics"]["long"].update(kl="nan")))
    (row,) = [row for row in result.to_dict()["rows"] if not row["agrees"]]
    assert (row["excess"], row["got"]) == (None, None)


def test_the_vectors_name_the_recipes_of_each_method():
    result = conformance_vectors()
    assert "minirl-r3" in result.methods["minirl"]
    assert set(result.cases) == set(VECTORS["cases"])
    assert "impossible_token" in printed(result)


def test_the_python_of_the_page_makes_answers_that_agree(tmp_path, monkeypatch):
    page = (ROOT / "docs/conformance.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)

    def my_loss(logp, old, advantage, mask):
        a = advantage if advantage.ndim == 2 else advantage[:, None]
        ratio = (logp - old).exp()
        each = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        return torch.where(mask, each, 0.0).sum() / mask.sum()

    monkeypatch.chdir(tmp_path)
    assert run(["conformance", "export", "--json", "vectors.json"]) == 0
    scope = {"my_loss": my_loss}
    for block in code:
        exec(block, scope)
    assert scope["result"].passed
    assert len(scope["result"].compared) == len(VECTORS["cases"])


def test_the_record_covers_every_row_of_every_peer_on_the_shipped_vectors():
    assert RECORD["vectors"] == VECTORS["version"]
    assert {name: each["version"] for name, each in RECORD["peers"].items()} == PINS
    kept = [(row["peer"], row["row"], row["ours"], row["calls"], row["known"]) for row in RECORD["rows"]]
    rows = [row for each in ROWS.values() for row in each]
    assert kept == [(row.peer, row.name, row.ours, row.calls, dict(row.differs)) for row in rows]
    for row, found in zip(rows, RECORD["rows"], strict=True):
        assert found["cases"].keys() == ours(row, VECTORS["expected"]).keys(), row.name


def test_the_record_is_as_expected_and_no_row_differs_everywhere_unless_it_says_so():
    assert RECORD["as_expected"]
    statuses = {status for row in RECORD["rows"] for status in row["cases"].values()}
    assert statuses == {"agrees", "known difference"}
    for row in RECORD["rows"]:
        differing = {case for case, status in row["cases"].items() if status == KNOWN}
        assert differing == set(row["known"]), row["row"]


def test_names_of_rows_are_not_used_twice_and_cases_that_differ_exist():
    for rows in ROWS.values():
        assert len({row.name for row in rows}) == len(rows)
        for row in rows:
            assert set(row.differs) <= ours(row, VECTORS["expected"]).keys(), row.name


def test_every_statement_about_a_framework_is_one_that_a_row_tries():
    for term in TERMS:
        assert set(term.elsewhere) <= set(FRAMEWORKS)
        for peer, meaning in term.elsewhere.items():
            assert meaning.row in {row.name for row in ROWS[peer]}, (term.name, peer)


LOSS = Row(peer="verl", name="kl", ours="metrics/kl", calls="f", differs={"long": "they round"})
KL = ours(LOSS, VECTORS["expected"])


def judged(**change):
    """Statuses by case of a peer that agrees but for some cases, None where it does not answer."""
    given = {case: {"got": value} for case, value in KL.items()}
    given = {case: answer for case, answer in (given | change).items() if answer is not None}
    return {one.case: one for one in outcomes([LOSS], {"kl": given}, VECTORS)}


def test_a_known_difference_is_expected_and_its_end_is_not():
    found = judged(long={"got": 7.0})
    assert (found["long"].status, found["long"].why, found["long"].expected) == (KNOWN, "they round", True)
    assert all(one.expected for one in found.values())
    gone = judged()["long"]
    assert (gone.status, gone.expected) == ("difference has vanished", False)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"got": 1.0}, "unexpected difference"),
        ({"got": "nan"}, "unexpected difference"),
        ({"error": "TypeError: no"}, "failed"),
        ({"got": [1.0, 2.0]}, "failed"),
        (None, MISSING),
    ],
)
def test_what_is_not_expected_is_told_apart(answer, status):
    one = judged(masks=answer, long={"got": 7.0})["masks"]
    assert (one.status, one.expected) == (status, False)


def test_a_gradient_of_a_peer_is_asked_on_the_mask_alone():
    batch = batches(VECTORS)["masks"]
    rows = torch.tensor(gradient(lambda b: b.theta.sum(), batch))
    assert (rows == batch.mask.double()).all()


def other(value):
    return [other(each) for each in value] if isinstance(value, list) else value + 1


def fake(monkeypatch, change=lambda rows: None):
    """Peers that answer what the record says they did, in this interpreter."""

    def answered(peer, python, vectors):
        rows = {}
        for row in ROWS[peer]:
            got = {case: {"got": value} for case, value in ours(row, VECTORS["expected"]).items()}
            rows[row.name] = got | {case: {"got": other(got[case]["got"])} for case in row.differs}
        change(rows)
        return {"version": PINS[peer], "torch": "2", "rows": rows}

    monkeypatch.setattr(environment, "answers", answered)
    monkeypatch.setattr(environment, "build", lambda folder: folder / "bin/python")


def test_peers_that_are_as_expected_end_with_0(monkeypatch, capsys, tmp_path):
    fake(monkeypatch)
    assert run(["conformance", "peers", "--json", str(tmp_path / "p.json")]) == 0
    document = json.loads((tmp_path / "p.json").read_text())
    assert [(row["peer"], row["row"]) for row in document["rows"]] == [
        (row["peer"], row["row"]) for row in RECORD["rows"]
    ]
    assert "trl 1.16.0" in capsys.readouterr().out


def test_a_peer_that_changed_ends_with_1_and_is_named(monkeypatch, capsys):
    def changed(rows):
        if "pg_clipfrac" in rows:
            rows["pg_clipfrac"]["long"] = {"got": 0.25}

    fake(monkeypatch, changed)
    assert run(["conformance", "peers", "--env", "anywhere"]) == 1
    assert "verl, pg_clipfrac, long: unexpected difference" in " ".join(capsys.readouterr().out.split())


def test_a_result_of_peers_draws_and_has_rows(monkeypatch):
    fake(monkeypatch)
    result = conformance_peers(python="python")
    assert result.passed
    assert len(result.records()) == len(result.outcomes)
    assert result.plot().axes


def test_an_environment_that_is_there_is_taken_and_another_is_made(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(environment, "_ran", lambda command, *_: commands.append(command))
    monkeypatch.setattr(environment, "_installed", lambda python: PINS)
    assert environment.build(tmp_path) == tmp_path / "bin/python"
    assert commands == []
    monkeypatch.setattr(environment, "_installed", lambda python: {})
    environment.build(tmp_path)
    assert [command[1:3] for command in commands] == [["-m", "venv"], ["-m", "pip"], ["-m", "pip"]]
    assert commands[-1][-1] == "verl==0.9.1"


def test_what_cannot_be_installed_or_run_is_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make an environment"):
        environment.build(tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="cannot be run"):
        environment.answers("verl", tmp_path / "no-python", source())
    with pytest.raises(ConfigError, match=r"verl does not run in .*No package metadata was found for verl") as refused:
        environment.answers("verl", Path(sys.executable), source())
    assert "\n" not in str(refused.value)


def test_a_peer_runs_in_an_interpreter_that_has_it_and_sees_nothing_else_of_ours(tmp_path, monkeypatch):
    # a stand-in for TorchRL's room: its answers come through the same start, the same file and the same comparison
    script = environment.BOOT.replace(
        "main(*sys.argv[2:])", 'print(sorted(n for n in sys.modules if "firstorder" in n))'
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "src/firstorder"), "torchrl"],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    loaded = set(re.findall(r"'(firstorder[\w.]*)'", done.stdout))
    assert loaded == {"firstorder", *(f"firstorder.backends{n}" for n in ("", ".peers", ".peers.run", ".peers.inputs"))}


def test_what_does_not_belong_to_a_run_is_kept_from_it(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    variables = environment._variables()
    assert "PYTHONPATH" not in variables
    assert variables["CUDA_VISIBLE_DEVICES"] == ""


def test_an_interpreter_named_from_here_is_found_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="verl does not run in python: "):
        environment.answers("verl", Path("python"), source())


def test_the_cache_is_where_the_system_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment.cache() == tmp_path / "firstorder/peers"


def test_another_release_of_a_peer_is_said(monkeypatch):
    fake(monkeypatch)
    said = environment.answers
    monkeypatch.setattr(environment, "answers", lambda *given: said(*given) | {"version": "9.9"})
    text = " ".join(printed(conformance_peers(python="python")).split())
    assert "the rows of verl were written for 0.9.1, this is 9.9" in text
