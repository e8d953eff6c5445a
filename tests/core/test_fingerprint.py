"""What makes two recipes the same for evidence, and folders that appear whole."""

import hashlib
import json
from pathlib import Path

import pytest

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe, fingerprint
from firstorder.core.runs.files import check_folder, whole_folder
from firstorder.core.settings.toml import build, dump, override, read


def recipe(*changes, name="minirl-r3-n2"):
    return build(Recipe, override(read(name), changes))


def test_the_large_models_recipe_has_the_fingerprint_of_the_small_ones():
    assert fingerprint(recipe()) == fingerprint(recipe(name="qwen3-30b-a3b-r3-n2"))


RECORD = json.loads((Path(__file__).parents[1] / "records/recipes.json").read_text())


def digests(name):
    """The fingerprint of a shipped recipe, and a hash of all that it is."""
    shipped = recipe(name=name)
    absent = set() if shipped.terms.active else {"terms"}  # a section that says nothing is none
    return [fingerprint(shipped), hashlib.sha256(dump(shipped.model_dump(exclude=absent)).encode()).hexdigest()]


@pytest.mark.parametrize("name", RECORD)
def test_a_recipe_that_has_shipped_stays_what_it_is_whatever_becomes_of_its_base(name):
    # meant to move? write digests(name) into tests/records/recipes.json and the migration into the changelog
    assert digests(name) == RECORD[name]


@pytest.mark.parametrize("same", ["optimizer.lr=0.1", "schedule.steps=3", "schedule.prompts=8", "about.name=other"])
def test_sizes_names_and_rates_leave_a_fingerprint(same):
    assert fingerprint(recipe(same)) == fingerprint(recipe())


@pytest.mark.parametrize(
    "other",
    ["schedule.minibatches=4", "clip.high=0.28", "router_replay.mode=R2", "ratio.of=theta/old", "advantage.std=true"],
)
def test_a_part_of_the_method_changes_it(other):
    assert fingerprint(recipe(other)) != fingerprint(recipe())


def test_a_folder_appears_whole(tmp_path):
    out = tmp_path / "deep" / "bundle"
    with whole_folder(out) as partial:
        (partial / "a").write_text("1")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    assert list(out.parent.iterdir()) == [out]


def test_an_error_leaves_no_folder(tmp_path):
    out = tmp_path / "bundle"

    def fail(folder):
        (folder / "a").write_text("1")
        raise KeyError

    with pytest.raises(KeyError), whole_folder(out) as partial:
        fail(partial)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write --out"), whole_folder(tmp_path / "file" / "bundle"):
        pass


def test_a_place_that_is_taken_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        check_folder(tmp_path / "file")
    with pytest.raises(ConfigError, match="is not empty"):
        check_folder(tmp_path)
