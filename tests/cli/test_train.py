"""`firstorder.cli.api.train`: a run from Python is the run of the command, and its result shows what was logged."""

import os

import pytest

from firstorder.cli.api.train import train
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.runs.folder import RunFolder
from firstorder.core.runs.logs import LOGS
from firstorder.core.settings import toml

SCHEDULE = {"steps": 3, "prompts": 4, "group_size": 4}
SIZES = {"vocab": 3, "horizon": 2, "prompts": 2, "width": 4, "evaluate_every": 2}


def logs(folder):
    return [(folder / f"{name}.jsonl").read_bytes() for name in LOGS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The result of a run from Python, with two members."""
    return train("minirl-r3", out=tmp_path_factory.mktemp("runs") / "python", schedule=SCHEDULE, members=2, **SIZES)


def test_however_settings_are_given_the_run_is_that_of_the_command(trained, tmp_path):
    assignments = [f"schedule.{key}={value}" for key, value in SCHEDULE.items()]
    assignments += [f"sim.{key}={value}" for key, value in (SIZES | {"members": 2}).items()]
    words = [word for each in assignments for word in ("--set", each)]
    assert run(["train", "minirl-r3", *words, "--out", str(tmp_path / "command")]) == 0
    dotted = {f"sim.{key}": value for key, value in (SIZES | {"members": 2}).items()}
    train("minirl-r3", {"schedule": SCHEDULE} | dotted, out=tmp_path / "tables")
    train(toml.build(Recipe, toml.read("minirl-r3")), assignments, out=str(tmp_path / "object"))
    train(trained.folder / "config.toml", out=tmp_path / "file")
    for name in ("command", "tables", "object", "file"):
        assert logs(tmp_path / name) == logs(trained.folder)
        assert (tmp_path / name / "config.toml").read_bytes() == (trained.folder / "config.toml").read_bytes()


def test_a_result_is_its_folder_and_what_was_logged(trained, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert os.fspath(trained) == str(trained.folder)
    assert [line["step"] for line in trained.to_dict()["steps"]] == [0, 1, 2]
    assert trained.records()[1].keys() >= {"kl", "exact/j_pi", "corrected"}
    title, verdict, course, _next, head, *rows = str(trained).splitlines()
    assert title.startswith(f"{trained.folder}: 3 steps in ")
    assert (verdict, course) == (f"verdict: {trained.ended.outcome.headline}", f"J: {trained.ended.outcome.course}")
    assert head.split() == ["quantity", "first", "last"]
    first, last = (sum(trained.steps[step]["reward"]) / 2 for step in (0, 2))
    assert rows[0].split() == ["reward", f"{first:.6g}", f"{last:.6g}"]
    assert rows[-1].startswith("inert: clip.kind = minirl")
    assert "<th" in trained._repr_html_()


def test_a_result_draws_its_run_beside_others(trained):
    assert [ax.get_title(loc="left") for ax in trained.plot().axes] == [
        "sampled reward",
        "exact J of π",
        "exact J of μ",
    ]
    with pytest.raises(ConfigError, match="no figure 'flip'; did you mean 'flips'"):
        trained.plot(figure="flip")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backend": "tpu"}, "--backend must be sim or torchtitan, got 'tpu'"),
        ({"stalenes": 2}, "did you mean 'staleness'"),
        ({"backend": "torchtitan", "staleness": 2}, "no setting 'staleness'"),
        ({"backend": "torchtitan", "overrides": {"sim.staleness": 2}}, "is a setting of the simulator"),
        ({"strict": True}, "--strict: clip.kind = minirl"),
        ({"track": ["tensorbord"]}, "did you mean 'tensorboard'"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_written(given, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        train("minirl", out=tmp_path / "run", **given)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_says_how_to_go_on(tmp_path, monkeypatch):
    append = RunFolder.append

    def interrupted(self, log):
        append(self, log)
        if log.step == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", interrupted)
        with pytest.raises(KeyboardInterrupt) as stopped:
            train("minirl", out=tmp_path / "run", schedule=SCHEDULE, **SIZES)
    assert stopped.value.__notes__ == [f"{tmp_path / 'run'}: go on with `firstorder resume {tmp_path / 'run'}`"]
    again = train("minirl", out=tmp_path / "run", schedule=SCHEDULE, **SIZES, resume=True)
    assert [line["step"] for line in again.steps] == [0, 1, 2]
