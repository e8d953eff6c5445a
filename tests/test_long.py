"""The page of long responses: its pictures are drawn from their data, and its numbers are what the code gives."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import walks
from firstorder import measure
from firstorder.cli.main import run

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/long.md").read_text()
BEHIND = "run `make docs-tables`"


def data(name):
    return json.loads((ROOT / f"docs/images/{name}.json").read_text())


@pytest.mark.parametrize("make", [walks.contexts, walks.paths], ids=lambda make: make.__name__)
def test_contexts_and_paths_are_those_of_the_task(make):
    assert data(f"long-{make.__name__}") == make(), BEHIND


@pytest.fixture(scope="module")
def short():
    return walks.growth(walks.HORIZONS[:2])


@pytest.mark.parametrize("name", walks.RECIPES)
def test_the_errors_of_the_picture_are_those_of_the_code(name, short):
    for quantity, found in short[name].items():
        shown = data("long-growth")[name][quantity]
        assert list(shown) == [str(horizon) for horizon in walks.HORIZONS]
        for horizon, values in found.items():
            assert shown[horizon] == pytest.approx(values, rel=1e-6), BEHIND


def test_many_seeds_at_once_are_measured_as_each_alone(short):
    alone = measure("minirl-r3", **walks.PROBLEM, prompts=2, horizon=8, seed=3)
    for quantity in ("gradient_error", "value_error"):
        assert short["minirl-r3"][quantity]["8"][3] == pytest.approx(getattr(alone, quantity), rel=1e-6)


def test_the_page_says_what_the_picture_shows():
    shown = data("long-growth")

    def median(name, quantity, horizon):
        return float(np.median(shown[name][quantity][horizon]))

    said = re.search(
        r"goes from ([\d.]+) at 8 tokens to ([\d.]+) at 2,048 \(`minirl`\), with R3\s+from ([\d.]+) to ([\d.]+)\.\n",
        PAGE,
    )
    found = [median(name, "gradient_error", t) for name in ("minirl", "minirl-r3") for t in ("8", "2048")]
    assert [float(x) for x in said.groups()] == pytest.approx(found, abs=6e-4)
    said = re.search(r"value error goes from (\S+) to (\S+) without replay, and from (\S+) to (\S+) with R3\.", PAGE)
    found = [median(name, "value_error", t) for name in ("minirl", "minirl-r3") for t in ("8", "2048")]
    assert [float(x) for x in said.groups()] == pytest.approx(found, rel=0.03)
    without = ("minirl-no-is", "grpo", "reinforce")
    assert min(median(name, "gradient_error", "2048") for name in without) > 0.985


def test_responses_of_one_length_are_not_changed_by_a_norm_of_lengths():
    plain, normed = (measure(name, **walks.PROBLEM, prompts=2, horizon=8) for name in ("minirl", "minirl-length-norm"))
    assert normed.gradient_error == pytest.approx(plain.gradient_error, rel=1e-9)
    assert normed.update_scale == pytest.approx(8 * plain.update_scale, rel=1e-9)


def test_replay_without_compounding_is_what_the_script_prints():
    lines = runpy.run_path(str(ROOT / "docs/examples/compounding.py"))["table"](128)
    for line in lines[2:]:
        first, *cells = [float(x) for x in re.findall(r"[\d.]+", line)]
        (shown,) = re.findall(rf"^\| {first:.0f} \| .*± .*$", PAGE, flags=re.MULTILINE)
        assert [float(x) for x in re.findall(r"[\d.]+", shown)][1:] == pytest.approx(cells, abs=0.011)


def test_the_example_of_long_responses_measures(tmp_path):
    place = tmp_path / "out.json"
    assert run(["measure", str(ROOT / "docs/examples/long.toml"), "--json", str(place)]) == 0
    result = json.loads(place.read_text())["result"]
    assert result["mean_length"] == pytest.approx(2048)
    assert result["nodes"] == 2 * 8 * 2  # problems, positions, on the chain and off it


def test_the_page_shows_what_the_records_hold():
    page = (ROOT / "docs/long.md").read_text()
    claims = json.loads((ROOT / "tests/records/training.json").read_text())["claims"]
    conditions = next(c for c in claims if c["id"] == "training-long-is")["measured"]["conditions"]
    sampled = json.loads((ROOT / "tests/records/long-sampled.json").read_text())["horizons"]
    for leads in [*conditions.values(), *sampled.values()]:
        lead = leads["differences"]["minirl - minirl-no-is"]
        assert f"{lead['value']:+.2f} [{lead['low']:.2f}, {lead['high']:.2f}]" in page
