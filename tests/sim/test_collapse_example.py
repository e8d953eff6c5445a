"""The collapse that ships, and its cure, as a user runs them."""

import json
from pathlib import Path

import pytest
import torch

from firstorder.cli.main import run
from firstorder.core.settings.toml import flat, read

EXAMPLE = Path(__file__).parents[2] / "docs/examples/collapse.toml"


def trained(folder, *more):
    assert run(["train", str(EXAMPLE), *more, "--out", str(folder)]) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {key: torch.tensor([line[key] for line in lines]).T for key in ("exact/j_pi", "update/entropy")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collapse")
    return trained(folder / "collapse"), trained(folder / "cured", "--set", "clip.kind=minirl")


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
