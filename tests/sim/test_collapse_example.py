"""The collapse that ships, and its cure, as a user runs them."""

import csv
import json
from pathlib import Path

import pytest
import torch

from firstorder.cli.main import run
from firstorder.cli.report.outcome import run_outcome
from firstorder.core.runs.logs import history
from firstorder.core.settings.toml import flat, parse, read

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/collapse.toml"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collapse")
    return folder / "collapse", folder / "cured"


def trained(folder, *more):
    assert run(["train", str(EXAMPLE), *more, "--out", str(folder)]) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {key: torch.tensor([line[key] for line in lines]).T for key in ("exact/j_pi", "update/entropy")}


@pytest.fixture(scope="module")
def runs(folders):
    return trained(folders[0]), trained(folders[1], "--set", "clip.kind=minirl")


def test_without_a_clip_what_was_known_is_lost_and_with_it_the_task_is_learnt(runs):
    collapse, cured = (found["exact/j_pi"] for found in runs)
    assert float(collapse[:, -3:].mean()) < 0.55 * float(collapse.mean(0).max())
    assert float(collapse[:, -1].mean()) < 0.25
    assert float(cured[:, -3:].mean(-1).min()) > 0.7


def test_the_collapse_comes_with_a_drop_in_entropy(runs):
    collapse, cured = (found["update/entropy"].mean(0) for found in runs)
    assert (collapse[1:6] < cured[1:6]).all()
    assert float(collapse[-1]) < 0.1 * float(collapse[0])


def test_the_example_is_the_shipped_recipe():
    mine, shipped = (flat(read(name)) for name in (str(EXAMPLE), "reinforce-n64"))
    method = {key for key in mine if key.split(".")[0] not in ("about", "sim", "optimizer")}
    assert {key for key in method if mine[key] != shipped.get(key)} == {"schedule.steps"}
    assert mine["schedule.steps"] == 12


def test_the_pages_show_how_it_ends(runs, folders):
    outcome = run_outcome(list(history(folders[0])), flat(parse(folders[0] / "config.toml")))
    page = (ROOT / "docs/train.md").read_text()
    seeds = ", ".join(str(1000 + place) for place in outcome.collapsed)
    for line in (f"verdict: {outcome.headline}", f"J: {outcome.course}", f"collapsed seeds: {seeds}"):
        assert f"\n{line}\n" in page
    assert f"\nwhat to do: {outcome.advice}; docs/collapse.md says why\n" in page
    ((remedy, cause),) = outcome.remedies
    capital = f"{outcome.headline[0].upper()}{outcome.headline[1:]}"
    top = (capital, f"{outcome.course}.", f"Try {remedy}, against {cause} (why).")
    assert "\n".join(top) in (ROOT / "docs/report.md").read_text()


def test_the_figure_on_the_page_is_of_this_run(runs):
    with (ROOT / "docs/images/train-reward.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["quantity"] == "exact/j_pi"]
    shown = torch.tensor([[float(x) for x in row["each"].split()] for row in rows]).T
    assert torch.allclose(shown.double(), runs[0]["exact/j_pi"].double(), rtol=1e-3, atol=1e-3)
