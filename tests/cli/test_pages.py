"""Errors that end with where to read on."""

import sys
from pathlib import Path

import pytest

from firstorder.cli import pages
from firstorder.cli.api.installed import USES
from firstorder.cli.api.keys import sections
from firstorder.cli.main import run

ROOT = Path(__file__).parents[2]


def test_every_section_has_a_page_that_has_its_keys():
    assert pages.SECTIONS.keys() == sections().keys()
    for section, page in pages.SECTIONS.items():
        named = "optimizer" if section == "critic" else section  # of which the page says that they are the same
        assert (
            f"<!-- table: keys {named} -->" in (ROOT / page).read_text()
            or f"<!-- table: keys {named} " in (ROOT / page).read_text()
        )


def test_every_extra_of_a_user_has_a_page_that_names_it():
    assert pages.EXTRAS.keys() == USES.keys()
    assert all(extra in (ROOT / page).read_text() for extra, page in pages.EXTRAS.items())


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        (["measure", "minirl-r9"], "`firstorder recipes` lists the shipped ones"),
        (
            ["measure", "minirl", "--set", "clip.hihg=0.3"],
            "low, temperature; `firstorder keys clip` explains them",
        ),
        (["measure", "minirl", "--set", "sim.numerics.scal=1"], "; `firstorder keys sim` explains them"),
        (["measure", "minirl", "--set", "cilp.high=0.3"], "; `firstorder keys` lists what is in them"),
        (["measure", "minirl", "--set", "ratio.of=none", "--set", "clip.kind=ppo"], ", see docs/recipes.md"),
        (["measure", "minirl", "--set", "sim.prompts=100000"], ", see docs/measure.md"),
        (["keys", "cilp"], "`firstorder keys` lists them"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_an_error_ends_with_where_to_read_on(arguments, end, capsys):
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert err.endswith(f"{end}\n")
    assert err.count("\n") == 1


def test_a_cell_of_a_grid_is_sent_to_the_same_place():
    of_cell = "cell 0 (sim.seed = 1): clip.kind = ppo bounds a ratio of theta; use theta/old"
    assert pages.guided(of_cell) == f"{of_cell}, see docs/recipes.md"
    unknown = "cell 0 (clip.hihg = 0.3): unknown key 'clip.hihg'; valid keys: high"
    assert pages.guided(unknown) == f"{unknown}; `firstorder keys clip` explains them"


def test_a_message_that_says_where_to_read_on_is_left_as_it_is():
    for message in ("vllm.tensor = 2 needs servers; see docs/engines.md", "no key 'x'; `firstorder keys` lists them"):
        assert pages.guided(message) == message


def test_a_missing_library_names_the_page_of_its_use(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "run").mkdir()
    assert run(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith("pip install 'firstorder[report]', see docs/report.md\n")
