"""Which settings a run folder may be resumed with."""

import re
import tomllib

import pytest

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.runs.folder import RunFolder
from firstorder.core.settings.toml import build, dump, read
from firstorder.sim.config import Sim
from firstorder.sim.training.session import SimRun, resolved_run

CONFIG = {"recipe": {"lr": 0.1}, "engine": {"rows": 16, "seed": 0}}


def changed(key, value):
    return CONFIG | {"engine": CONFIG["engine"] | {key: value}}


@pytest.fixture
def path(tmp_path):
    return RunFolder(tmp_path / "run", CONFIG, resume=False).path


def test_a_changeable_key_takes_its_new_value(path):
    for rows in (8, 4):
        RunFolder(path, changed("rows", rows), resume=True, changeable=["engine.rows"])
        assert tomllib.loads((path / "config.toml").read_text()) == changed("rows", rows)


def test_the_others_stay(path):
    with pytest.raises(ConfigError, match=r"was run with engine.seed = 0, got 1; resume with the same"):
        RunFolder(path, changed("seed", 1), resume=True, changeable=["engine.rows"])
    with pytest.raises(ConfigError, match=r"was run with engine.rows = 16, got 8"):
        RunFolder(path, changed("rows", 8), resume=True)
    assert tomllib.loads((path / "config.toml").read_text()) == CONFIG


LATER = """
[correction]
mean_one = false

[router_replay]
gates = "live"
condition = 0.0

[advantage]
scale = "none"

[clip]
cap = 3.0
temperature = [1.0, 1.05]

[sim]
min_p = 0.0
sample_top_k = 0
top_p = 1.0
sampling_mask = "replayed"
"""
"""Keys of a run that came later, beside [terms] and [rejection]."""


def as_stored_before(file):
    """The configuration of a run without what came later."""
    tables = tomllib.loads(file.read_text())
    del tables["terms"], tables["rejection"]
    for section, keys in tomllib.loads(LATER).items():
        for key, value in keys.items():
            assert tables[section].pop(key) == value
    file.write_text(dump(tables))
    return tables


SIM = Sim(vocab=3, horizon=2, prompts=2, width=4, expert_width=4, evaluate_every=2, checkpoint_every=1)
SIZES = {"schedule": {"steps": 2, "prompts": 2, "group_size": 2}}


def recipe(name, **changes):
    return build(Recipe, read(name)).with_({}, **SIZES).with_({}, **changes)


def test_a_run_that_lacks_the_keys_that_came_later_goes_on_bit_for_bit(tmp_path):
    made = SimRun(recipe=recipe("minirl-r3"), sim=SIM)
    made.prepare(tmp_path / "run").run()
    log = tmp_path / "run/metrics.jsonl"
    whole = log.read_bytes()
    as_stored_before(tmp_path / "run/config.toml")
    (tmp_path / "run/checkpoints/step-0000002.pt").unlink()
    session = made.prepare(tmp_path / "run", resume=True)
    assert session.first == 1
    session.run()
    assert log.read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"terms": {"entropy": 0.1}}, "terms.entropy = 0.0, got 0.1"), ({"clip": {"high": 0.3}}, "clip.high = 0.27, got")],
)
def test_a_key_that_came_later_is_at_its_default_and_no_other_value(changes, key, tmp_path):
    file = RunFolder(tmp_path / "run", SimRun(recipe=recipe("minirl-r3"), sim=SIM).settings(), resume=False).path
    tables = as_stored_before(file / "config.toml")
    now = SimRun(recipe=recipe("minirl-r3", **changes), sim=SIM).settings()
    with pytest.raises(ConfigError, match=f"was run with {re.escape(key)}"):
        RunFolder(file, now, resume=True, resolved=resolved_run)
    assert tomllib.loads((file / "config.toml").read_text()) == tables


@pytest.mark.parametrize(("name", "kind"), [("mis", "sequence_mask"), ("mis-geometric", "geometric_mask")])
def test_a_mask_that_was_a_correction_is_the_rejection_of_today(name, kind, tmp_path):
    now = SimRun(recipe=recipe(name), sim=SIM).settings()
    file = RunFolder(tmp_path / "run", now, resume=False).path / "config.toml"
    masks = tomllib.loads(file.read_text())["rejection"]
    tables = as_stored_before(file)
    bounds = {"low": max(0.0, masks["low"]), "high": masks["high"], "of": masks["of"]}
    file.write_text(dump(tables | {"correction": tables["correction"] | bounds | {"kind": kind}}))
    RunFolder(file.parent, now, resume=True, resolved=resolved_run)


def test_cells_of_an_ensemble_are_read_as_runs_are():
    now = {"sim": SIM.model_dump(), "cells": {"0": recipe("minirl").model_dump()}}
    stored = {"sim": {}, "cells": {"0": recipe("minirl").model_dump(exclude={"terms", "rejection"})}}
    assert resolved_run(stored | {"sim": SIM.model_dump(exclude={"top_p"})}) == now


@pytest.mark.parametrize("text", ["sim = 3\n", "[schedule]\nsteps = 'x'\n", "cells = 1\n"])
def test_what_cannot_be_read_today_is_compared_as_it_stands(text, path):
    (path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match="was run with"):
        RunFolder(path, CONFIG, resume=True, resolved=resolved_run)
