import json
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from alike import same
from hypothesis import given, settings
from hypothesis import strategies as st
from made import made

from firstorder.core.errors import ConfigError, DataError
from firstorder.core.formats import neutral
from firstorder.core.formats.format import Options
from firstorder.core.formats.neutral import Run


def back(path):
    return list(neutral.read([path], Options()))


def test_what_is_written_is_read_back_to_the_last_digit(tmp_path):
    samples = made(seed=3, count=150, steps=1)
    neutral.write(tmp_path / "a.parquet", samples, Run(experts=8, replay="R3"))
    read = back(tmp_path / "a.parquet")
    assert len(read) == len(samples)
    assert all(map(same, samples, read))
    assert read[70].source == f"{tmp_path / 'a.parquet'} row 71"
    run = neutral.about(tmp_path / "a.parquet")
    assert run.model_copy(update={"digest": None}) == Run(experts=8, replay="R3", layers=3, top_k=2)


def test_a_copy_shifted_by_one_row_is_read_back_shifted(tmp_path):
    samples = made(seed=3, steps=1)
    moved = [replace(s, logp_mu=s.logp_mu.roll(1), routes=s.routes.roll(1, 0)) for s in samples]
    neutral.write(tmp_path / "a.parquet", moved)
    assert not any(map(same, samples, back(tmp_path / "a.parquet")))


def test_columns_that_a_dump_does_not_hold_are_none_when_read(tmp_path):
    bare = [replace(s, logp_old=None, routes=None, routes_old=None, group=None, reward=None) for s in made(steps=1)]
    neutral.write(tmp_path / "a.parquet", bare)
    assert all(map(same, bare, back(tmp_path / "a.parquet")))


def test_a_log_prob_that_is_not_a_number_stays_one(tmp_path):
    sample = made(steps=1)[0]
    sample.logp_mu[-1] = torch.nan
    neutral.write(tmp_path / "a.parquet", [sample])
    assert back(tmp_path / "a.parquet")[0].logp_mu[-1].isnan()


def test_files_are_read_in_the_order_of_their_steps(tmp_path):
    for step, name in ((10, "a"), (2, "b"), (9, "c")):
        neutral.write(tmp_path / f"{name}.parquet", [replace(made(steps=1)[0], step=step)])
    read = neutral.read([tmp_path / f"{name}.parquet" for name in "abc"], Options())
    assert [sample.step for sample in read] == [2, 9, 10]


def test_responses_of_a_file_must_have_the_same_columns(tmp_path):
    one, two = made(steps=1)[:2]
    with pytest.raises(DataError, match="same columns; made step 0 sample 1 differs"):
        neutral.write(tmp_path / "a.parquet", [one, replace(two, entropy=None)])
    assert not list(tmp_path.iterdir())


def arrow(path, change=lambda table: table, about=None):
    neutral.write(path, made(steps=1))
    table = pq.read_table(path)
    metadata = {neutral.KEY: json.dumps(about).encode()} if about is not None else table.schema.metadata
    pq.write_table(change(table).replace_schema_metadata(metadata), path)


def put(name, values, kind=None):
    return lambda table: table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["tokens"]), "lacks the column `tokens`"),
        (lambda table: table.append_column("colour", pa.array([1] * 6)), "unknown column `colour`"),
        (put("reward", ["a"] * 6), "`reward` must be double, got string"),
        (put("reward", [1.0, None, 1.0, 1.0, 1.0, 1.0]), "row 2: `reward` is null"),
        (put("reward", [1.0, float("nan"), 1.0, 1.0, 1.0, 1.0]), "row 2: `reward` is NaN"),
        (put("tokens", [[]] * 6, pa.list_(pa.int64())), "row 1: `tokens` is empty"),
        (put("logp_mu", [[-1.0]] * 6, pa.list_(pa.float64())), "row 1: `logp_mu` has 1 entries"),
        (put("logp_mu", [[-1.0, None]] * 6, pa.list_(pa.float64())), "row 1: `logp_mu` holds 1 nulls"),
        (put("routes", [b"12"] * 6), "row 1: `routes` must hold tokens x layers x experts a token"),
    ],
)
def test_a_file_that_breaks_the_form_is_refused_with_its_row(tmp_path, change, message):
    arrow(tmp_path / "a.parquet", change)
    with pytest.raises(DataError, match=message) as refused:
        back(tmp_path / "a.parquet")
    assert "a.parquet" in str(refused.value)


@pytest.mark.parametrize(
    ("about", "message"),
    [({}, None), ({"version": 2}, "is of version 2"), ({"colour": 1}, "no valid"), ([], "no valid")],
)
def test_metadata_says_the_version(tmp_path, about, message):
    arrow(tmp_path / "a.parquet", lambda table: table.drop_columns(["routes", "routes_old"]), about)
    if message is None:
        assert len(back(tmp_path / "a.parquet")) == 6
    else:
        with pytest.raises(DataError, match=message):
            back(tmp_path / "a.parquet")


def test_a_row_group_that_claims_more_than_can_be_held_is_refused(tmp_path, monkeypatch):
    neutral.write(tmp_path / "a.parquet", made(steps=1))
    monkeypatch.setattr(neutral, "MOST", 100)
    with pytest.raises(DataError, match="row group 0 claims"):
        back(tmp_path / "a.parquet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("neutral") / "a.parquet"
    neutral.write(path, made(steps=1))
    return path.read_bytes()


@settings(max_examples=15, deadline=None)
@given(place=st.floats(0, 1), flip=st.integers(1, 255), end=st.floats(0, 1))
def test_a_damaged_file_gives_samples_or_one_line(whole, place, flip, end, tmp_path_factory):
    data = bytearray(whole[: max(1, int(end * len(whole)))] if flip % 3 == 0 else whole)
    data[min(int(place * len(data)), len(data) - 1)] ^= flip
    path = Path(tmp_path_factory.getbasetemp()) / "damaged.parquet"
    path.write_bytes(bytes(data))
    try:
        read = back(path)
    except DataError as error:
        refused = str(error)
    else:
        refused = None
    if refused is None:
        assert all(map(same, made(steps=1), read))
    else:
        assert "damaged.parquet" in refused
        assert "\n" not in refused


@pytest.mark.parametrize("ask", [lambda path: back(path), neutral.about])
def test_a_missing_library_is_named_and_no_damage(tmp_path, monkeypatch, ask):
    neutral.write(tmp_path / "a.parquet", made(steps=1))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow; pip install 'firstorder\[audit\]'"):
        ask(tmp_path / "a.parquet")
