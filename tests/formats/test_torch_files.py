import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import writers_miles
import writers_skyrl
import writers_slime
import writers_verl
from alike import refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from made import made

from firstorder.core.errors import DataError
from firstorder.core.formats import miles, skyrl, slime, torch_files, verl
from firstorder.core.formats.format import Options
from firstorder.core.formats.torch_files import load

DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.pt"


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOATS])
def test_a_tensor_is_read_back(path, dtype):
    value = torch.arange(12).reshape(3, 4).to(dtype)
    torch.save({"plain": value, "turned": value.t(), "part": value[1:, 2], "one": value[0, 1], "none": value[:0]}, path)
    read = load(path)
    for name, expected in torch.load(path, weights_only=True).items():
        found = read.tensor(read.value[name])
        assert found.dtype is dtype
        assert torch.equal(found.double(), expected.double())


def test_tensors_of_one_storage_share_it(path):
    value = torch.arange(1000.0)
    torch.save([value, value[10:20], torch.nn.Parameter(value)], path)
    read = load(path)
    assert [len(read.tensor(each)) for each in read.value[:2]] == [1000, 10]
    assert len(read.storages) == 1


def test_tensors_of_another_device_are_read_too(path):
    torch.save({"a": torch.arange(5.0)}, path)
    there = rewritten(path, change=lambda name, data: data.replace(b"\x03\0\0\0cpu", b"\x06\0\0\0cuda:3"))
    assert b"cuda:3" in there.read_bytes()
    read = load(there)
    assert read.tensor(read.value["a"]).tolist() == [0, 1, 2, 3, 4]


def test_what_is_no_tensor_is_read_as_it_is(path):
    value = {"a": [1, 2.5, None, True], "b": ("x", {"y": -3}), 7: "z" * 10}
    torch.save(value, path)
    assert load(path).value == value


class Evil:
    def __reduce__(self):
        return len, ("ran",)


def test_a_class_that_no_dump_needs_is_refused_by_name(path, capfd):
    torch.save({"samples": [Evil()]}, path)
    with pytest.raises(DataError, match=r"a\.pt: a pickle that asks for __builtin__\.len"):
        load(path)
    assert capfd.readouterr().out == ""


def rewritten(path, compression=zipfile.ZIP_STORED, change=lambda name, data: data):
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in members.items():
            new.writestr(name, change(name, data))
    return path


def test_a_compressed_archive_is_refused_before_it_is_unpacked(path):
    torch.save(torch.zeros(1 << 22), path)
    rewritten(path, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 17
    with pytest.raises(
        DataError, match=r"is compressed, from [0-9]+ to [0-9]+ bytes, and torch\.save never compresses"
    ):
        load(path)


def test_an_archive_that_python_wrote_is_read_too(path):
    torch.save({"a": torch.arange(5.0)}, path)
    read = load(rewritten(path))
    assert read.tensor(read.value["a"]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x05\x85", b"K\xff\x85", "a tensor of 255 is announced and its storage holds 5 numbers"),
        (b"K\x01\x85", b"K\xff\x85", "a tensor of 5 is announced and its storage holds 5 numbers"),
        (b"K\x01\x85", b"K\x00\x85", None),
        (b"FloatStorage", b"DoubleStorage"[:12], "asks for torch.DoubleStorag"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009", "it has no storage '9'"),
    ],
)
def test_a_tensor_that_claims_what_is_not_there_is_refused(path, old, new, message):
    torch.save({"a": torch.arange(5.0)}, path)
    rewritten(path, change=lambda name, data: data.replace(old, new) if name.endswith("data.pkl") else data)
    if message is None:
        read = load(path)
        assert read.tensor(read.value["a"]).tolist() == [0] * 5
        return
    with pytest.raises(DataError, match=message):
        (read := load(path)).tensor(read.value["a"], "a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has no end record"),
        (b"PK\x03\x04" * 50, "it has no end record"),
        (b"PK\x05\x06" + b"\xff" * 18, "members are announced"),
        (b"PK\x05\x06" + b"\0" * 18, "a ZIP archive without data.pkl"),
        (pickle.dumps([1]), "it has no end record"),
        (b"PK\x05\x06" + b"\0\0\0\0\1\0\1\0" + b"\x2e\0\0\0" + b"\0\0\0\0" + b"\0\0", "members are announced"),
    ],
)
def test_what_is_no_file_of_torch_save_is_refused(path, data, message):
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as refused:
        load(path)
    assert "a.pt" in str(refused.value)


def test_the_old_container_of_torch_is_refused(path):
    torch.save([1], path, _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match=r"no whole file of torch\.save"):
        load(path)


def test_a_file_larger_than_the_free_memory_is_refused(path, monkeypatch):
    torch.save(torch.zeros(1000), path)
    monkeypatch.setattr(torch_files, "available", lambda: 2000)
    with pytest.raises(DataError, match="more than the free memory"):
        load(path)


def test_a_folder_or_a_file_that_is_gone_is_refused(tmp_path):
    for name in ("", "gone.pt"):
        with pytest.raises(DataError, match="cannot be read"):
            load(tmp_path / name)


def test_a_large_rollout_is_read_in_little_more_memory_than_its_file(path):
    """In a process of its own, whose largest memory before is known."""
    tokens, layers, k = 25_000, 48, 8
    numbers = {"tokens": list(range(tokens)), "response_length": tokens, "rollout_log_probs": [-0.5] * tokens}
    routes = [torch.randint(0, 128, (tokens - 1, layers, k), dtype=torch.int32) for _ in range(4)]
    torch.save({"rollout_id": 0, "samples": [{**numbers, "rollout_routed_experts": each} for each in routes]}, path)
    code = (
        "import sys; from pathlib import Path; from firstorder.core.formats import slime\n"
        "from firstorder.core.formats.format import Options; from firstorder.core.memory import peak\n"
        "before = peak()\n"
        "shapes = [tuple(sample.routes.shape) for sample in slime.read([Path(sys.argv[1])], Options())]\n"
        "print(shapes, peak() - before, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    shapes, grown = done.stdout.splitlines()
    assert shapes == str([(tokens, layers, k)] * 4)
    assert int(grown) < 1.5 * path.stat().st_size


CASES = {
    "rollout": (slime, lambda folder, samples: writers_slime.write(folder, samples, parts=("rollout",))),
    "arrays": (slime, lambda folder, samples: writers_slime.write(folder, samples, np.asarray, ("rollout",))),
    "train": (slime, lambda folder, samples: writers_slime.write(folder, samples, parts=("train",))),
    "shard": (miles, lambda folder, samples: writers_miles.write(folder, samples, dp_size=1, parts=("train",))),
    "loss": (miles, lambda folder, samples: [writers_miles.losses(folder, samples)]),
    "skyrl": (skyrl, writers_skyrl.write),
    "proto": (verl, writers_verl.write),
    "bytes": (verl, lambda folder, samples: writers_verl.write(folder, samples, writers_verl.as_arrays)),
    "queue": (verl, writers_verl.queue),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    samples = made(steps=1, count=2)
    written = {name: write(tmp_path_factory.mktemp(name), samples)[0] for name, (_, write) in CASES.items()}
    return {name: (file, file.read_bytes()) for name, file in written.items()}


damage = st.tuples(
    st.floats(0, 1), st.integers(0, 255), st.sampled_from(["byte", "cut", "drop", "twice"]), st.booleans()
)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, deadline=None)
@given(damages=st.lists(damage, min_size=1, max_size=4), fill=st.sampled_from([None, "zeros", "arange", "none"]))
def test_a_damaged_file_gives_samples_or_one_line(files, name, damages, fill):
    path, whole = files[name]
    data = bytearray(whole)
    for where, value, how, early in damages:
        place = int(where * (min(len(data), 4000) if early else len(data)))
        if how == "cut":
            del data[max(place, 1) :]
        elif how == "drop":
            del data[place : place + 1]
        elif how == "twice":
            data[place:place] = data[place : place + value]
        elif place < len(data):
            data[place] = value
    path.write_bytes(bytes(data))
    refused = refusal(lambda: list(CASES[name][0].read([path], Options(fill=fill))))
    path.write_bytes(whole)
    assert refused == "" or path.name in refused
    assert "\n" not in refused
    assert len(refused) < 500


def test_the_files_that_are_damaged_are_read_when_they_are_whole(files):
    for name, (path, _) in files.items():
        assert len(list(CASES[name][0].read([Path(path)], Options()))) == 2


FORMATS = (slime.SLIME, miles.MILES, skyrl.SKYRL, verl.VERL)


@pytest.mark.parametrize("name", CASES)
def test_every_file_is_recognised_by_one_format(files, name):
    path, _ = files[name]
    module = CASES[name][0]
    assert [each.name for each in FORMATS if each.recognise(path)] == [module.__name__.rpartition(".")[2]]


@pytest.mark.parametrize("start", range(1, 20))
def test_bytes_are_moved_to_where_a_tensor_can_be_a_view_of_them(start):
    read = bytearray(range(200))
    data = memoryview(read)[start : start + 64]
    moved = torch_files.aligned(data)
    assert bytes(moved) == bytes(range(start, start + 64))
    assert moved.obj is read
    assert torch.frombuffer(moved, dtype=torch.uint8).data_ptr() % 8 == 0 or start < 8
    again = torch_files.aligned(moved)
    assert bytes(again) == bytes(range(start, start + 64))
