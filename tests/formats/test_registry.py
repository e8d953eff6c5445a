import os
import time

import pytest
from made import made

from firstorder.core.errors import DataError
from firstorder.core.formats import neutral
from firstorder.core.formats.registry import open_dump


@pytest.fixture
def folder(tmp_path):
    for step in (0, 1):
        neutral.write(tmp_path / f"step_{step}.parquet", [s for s in made() if s.step == step])
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def test_a_folder_is_recognised_and_what_is_beside_is_counted(folder):
    dump = open_dump([folder])
    assert (dump.format.name, len(dump.files), dump.skipped) == ("neutral", 2, 1)
    assert len(list(dump.samples())) == len(list(dump.samples())) == 12


def test_a_file_may_be_given_twice_and_counts_once(folder):
    assert len(list(open_dump([folder, folder / "step_0.parquet"]).samples())) == 12


@pytest.mark.parametrize(
    ("paths", "format", "message"),
    [
        (["nowhere"], None, "nowhere cannot be read: No such file"),
        (["notes.txt"], None, "no file is of a known format"),
        (["."], "verll", "--format must be one of"),
        (["step_0.parquet", "notes.txt"], None, "notes.txt is no file of the format neutral"),
        (["empty"], None, "empty holds no files"),
        (["pipe"], None, "pipe is neither a file nor a folder"),
    ],
)
def test_what_is_no_dump_is_refused_in_one_line(folder, paths, format, message):
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    with pytest.raises(DataError, match=message):
        open_dump([folder / path for path in paths], format)


def test_a_file_that_grows_while_it_is_read_is_named(folder):
    samples = open_dump([folder]).samples()
    next(samples)
    time.sleep(0.01)
    with (folder / "step_1.parquet").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"step_1\.parquet"):
        list(samples)
