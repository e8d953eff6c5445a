"""A dump that grows is read as its files come."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import firstorder as fo
from firstorder.cli.api.audit import AuditOptions
from firstorder.cli.api.follow import follow
from firstorder.core.formats import neutral

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from made import made


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The files of a run's steps."""
    small = {
        "schedule.steps": 3,
        "schedule.prompts": 4,
        "schedule.group_size": 8,
        "sim.world": "graph",
        "sim.task": "chain",
        "sim.horizon": 48,
    }
    run = fo.train("minirl-r3", small, out=tmp_path_factory.mktemp("run") / "run", dump="neutral")
    return run, sorted((run.folder / "dump").iterdir())


def watch(folder, arrivals):
    """Follow a folder into which something comes after each look; what was said after each, and the code."""
    said, looks = [[]], iter(arrivals)

    def over():
        arrival = next(looks, None)
        if arrival is None:
            return True
        arrival()
        said.append([])
        return False

    code = follow([folder], AuditOptions(), lambda line: said[-1].append(line), pause=0, over=over)
    return said, code


def test_each_step_is_said_once_when_its_file_has_stopped_growing(steps, tmp_path):
    run, files = steps

    def put(file, data):
        return lambda: (tmp_path / file.name).write_bytes(data)

    first, second = (file.read_bytes() for file in files[:2])
    nothing = lambda: None  # noqa: E731
    said, code = watch(
        tmp_path / ".",
        [put(files[0], first[:500]), put(files[0], first), nothing, put(files[1], second), nothing, nothing],
    )
    assert code == 0
    assert [len(lines) for lines in said] == [0, 0, 0, 1, 0, 1, 0]
    assert said[3][0].startswith("step 0: reward ")
    assert f"kl {run.steps[1]['kl']:.4g}" in said[5][0]


def test_a_fault_is_said_when_it_first_appears_and_makes_the_code_1(steps, tmp_path):
    def put(file):
        samples = list(neutral.read([file], neutral.Options()))
        moved = [replace(s, logp_mu=torch.where(s.mask, s.logp_mu.roll(1), 0.0)) for s in samples]
        neutral.write(tmp_path / file.name, moved)

    nothing = lambda: None  # noqa: E731
    said, code = watch(tmp_path, [lambda: put(steps[1][0]), nothing, lambda: put(steps[1][1]), nothing])
    lines = [line for look in said for line in look]
    assert code == 1
    assert [line.split(":")[0] for line in lines if line.startswith("step")] == ["step 0", "step 1"]
    assert len([line for line in lines if line.startswith("fault: off by one")]) == 1


def test_a_file_that_cannot_be_read_is_said_and_the_rest_goes_on(steps, tmp_path):
    def bad():
        neutral.write(tmp_path / "a.parquet", made(steps=1))
        (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-30])

    def good():
        (tmp_path / "b.parquet").write_bytes(steps[1][2].read_bytes())

    nothing = lambda: None  # noqa: E731
    said, code = watch(tmp_path, [bad, nothing, good, nothing])
    lines = [line for look in said for line in look]
    assert code == 2
    assert lines[0].startswith(f"unreadable: {tmp_path / 'a.parquet'}")
    assert lines[1].startswith("step 2: ")


def test_a_folder_that_is_not_there_yet_is_waited_for(tmp_path):
    assert watch(tmp_path / "later", [lambda: None, lambda: None])[1] == 0


def test_no_folder_is_refused():
    with pytest.raises(fo.ConfigError, match="takes the folder that grows"):
        follow([], AuditOptions(), print)
