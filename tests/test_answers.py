"""The records of studies: made by the rule of the code, shown on the pages, and what the package ships of them."""

import json
from pathlib import Path

import pytest
from pyarrow import parquet

import mapped
import pictures
from firstorder.core.runs import alarm_table
from firstorder.sim.studies import STUDIES
from firstorder.sim.trials import atlas, borders

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / f"docs/{name}.md").read_text() for name in ("studies", "collapse")}
BEHIND = "run `make docs-tables`"
KNOWN = {study.id: study for study in STUDIES}


@pytest.mark.parametrize("name", pictures.names())
def test_a_record_was_made_by_the_rule_of_the_code(name):
    found = pictures.record(name)
    assert found["schema"] == "firstorder.study/1"
    assert not found["quick"]
    assert found["seeds"][0] >= 2000
    assert {key: getattr(KNOWN[name], key) for key in found["study"]} == found["study"]


@pytest.mark.parametrize("name", pictures.names())
def test_a_picture_is_drawn_from_its_record(name):
    assert pictures.digest(name) in (pictures.IMAGES / f"study-{name}.svg").read_text(), BEHIND
    rows = json.loads((pictures.IMAGES / f"study-{name}.json").read_text())
    assert rows == pictures.record(name)["rows"], BEHIND
    assert f"images/study-{name}.svg" in PAGES["studies"]


@pytest.mark.parametrize("name", KNOWN)
def test_a_study_has_its_section(name):
    assert f"## {name}\n" in PAGES["studies"]


def test_the_borders_and_the_alarms_of_the_package_are_those_of_the_records():
    shipped = json.loads(borders.SHIPPED.read_text())["borders"]
    assert shipped == pictures.record("regimes")["measured"]["borders"], "run `make borders`"
    assert json.loads(atlas.SHIPPED.read_text()) == pictures.record("map")["measured"]["map"], "run `make map`"
    table = pictures.record("warnings")["measured"]["table"]
    assert alarm_table.parse(json.dumps(table), "the record") == alarm_table.shipped(), "run `make alarms`"


def test_the_lengths_of_a_collapse_on_the_page_are_those_of_the_record():
    for border in pictures.record("regimes")["measured"]["borders"]:
        assert f"from {border['low']:,.0f} to {border['high']:,.0f}" in PAGES["studies"]
        assert f"{border['kl']:.2g}" in PAGES["studies"]


def test_a_run_that_becomes_its_own_reference_is_no_evidence():
    rows = pictures.record("causes")["rows"]
    told = [row for row in rows if row["removal"] and row["verdict"] is None]
    assert told
    assert all(row["share"] == 1.0 and row["share_low"] == row["share_high"] for row in told)
    assert not any(row["verdict"] and row["share_low"] == row["share_high"] == 1.0 for row in rows)


def test_all_of_the_map_is_a_table_of_parquet_beside_its_page(tmp_path):
    mapped.write(tmp_path / "map.parquet")
    for file in (tmp_path / "map.parquet", mapped.PARQUET):
        assert parquet.read_table(file).to_pylist() == atlas.read().rows()
