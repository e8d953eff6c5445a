"""Which settings a run folder may be resumed with."""

import tomllib

import pytest

from firstorder.core.errors import ConfigError
from firstorder.core.runs.folder import RunFolder

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
