import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from alike import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import DataError
from firstorder.core.formats import unpickle
from firstorder.core.formats.arrays import array
from firstorder.core.formats.machine import Inert
from firstorder.core.formats.names import NAMES
from firstorder.core.formats.unpickle import read

PROTOCOLS = (2, 3, 4, 5)


def loaded(data, **how):
    return read(memoryview(bytearray(data)), "a.pkl", **how)


def plain(value):
    """Views as the bytes that they show."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return {key: plain(each) for key, each in value.items()} if isinstance(value, dict) else value


leaves = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=9)
values = st.recursive(
    leaves | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=5) | st.integers(), inner)
    ),
    max_leaves=40,
)


@settings(max_examples=150, deadline=None)
@given(value=values, protocol=st.sampled_from((3, 4, 5)))
def test_what_is_pickled_is_read_back(value, protocol):
    assert plain(loaded(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_long_lists_of_numbers_are_read_back(protocol):
    value = {"ids": list(range(-5, 70_000, 7)), "logp": [i / 7 for i in range(5000)], "mask": [True, False, None] * 999}
    assert loaded(pickle.dumps(value, protocol)) == value


def test_shared_and_circular_references_are_kept():
    inner = [1, 2]
    around = {"a": inner, "b": inner}
    inner.append(around)
    value = loaded(pickle.dumps(around))
    assert value["a"] is value["b"]
    assert value["a"][2] is value


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("function", [os.system, eval, exec, subprocess.Popen, pickle.loads, torch.load, open, getattr])
def test_a_function_that_no_dump_needs_is_refused_by_name_and_not_run(tmp_path, protocol, function):
    data = pickle.dumps(Evil(function, f"touch {tmp_path}/ran"), protocol)
    with pytest.raises(
        DataError, match=rf"a\.pkl: a pickle that asks for [\w.]+\.{function.__name__}; only the classes"
    ):
        loaded(data)
    assert not list(tmp_path.iterdir())


def test_names_that_are_read_are_written_down_and_not_called():
    value = loaded(pickle.dumps(Evil(torch.Size, (2, 3))))
    assert isinstance(value, Inert)
    assert (value.name, value.args) == ("torch.Size", ((2, 3),))


def test_no_name_that_is_read_is_imported():
    """The modules of the frameworks are not there, and reading their names does not look for them."""
    code = (
        "import sys; from firstorder.core.formats.names import NAMES\n"
        "from firstorder.core.formats.unpickle import read\n"
        "for name in sorted(NAMES):\n"
        "    module, _, last = name.rpartition('.')\n"
        "    parts = [b'\\x8c' + bytes([len(part)]) + part.encode() for part in (module, last)]\n"
        "    read(memoryview(b'\\x80\\x04' + b''.join(parts) + b'\\x93)R.'), 'a.pkl')\n"
        "print([name for name in ('verl', 'skyrl', 'tensordict', 'torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert len(NAMES) > 60


def test_a_name_in_a_message_is_short_and_on_one_line():
    data = b"\x80\x04\x8c\x03a\nb\x8c\xf0" + b"x" * 240 + b"\x93."
    with pytest.raises(DataError) as refused:
        loaded(data)
    assert len(str(refused.value)) < 300
    assert "asks for a\\x0ab.xxx" in str(refused.value)
    assert "\n" not in str(refused.value)


def op(opcode, form="", *values):
    return (opcode if isinstance(opcode, bytes) else bytes([opcode])) + (struct.pack(form, *values) if form else b"")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "it ends before its last opcode"),
        (b"]", "it ends before its last opcode"),
        (b".", "takes from an empty stack"),
        (b"(.", "takes from an empty stack"),
        (b"e.", "takes up to a mark that it never set"),
        (b"(0.", "takes from an empty stack"),
        (b"h\x07.", "refers to object 7, which it never made"),
        (op(b"B", "<I", 2**32 - 1) + b"x.", "4,294,967,295 bytes are announced and 2 are left"),
        (op(0x8E, "<Q", 2**63) + b"x.", "9,223,372,036,854,775,808 bytes are announced"),
        (op(0x96, "<Q", 2**40) + b"x.", "1,099,511,627,776 bytes are announced"),
        (op(0x8D, "<Q", 2**40) + b"x.", "1,099,511,627,776 bytes are announced"),
        (op(0x95, "<Q", 2**40) + b"N.", "1,099,511,627,776 bytes are announced"),
        (op(0x8B, "<i", 10**6) + b"x" * 10**6 + b".", "a whole number of 1,000,000 bytes is not read"),
        (op(0x8B, "<i", -1) + b".", "a whole number of -1 bytes is not read"),
        (b"\x8c\x02\xff\xff.", "utf-8"),
        (b"}(]Nu.", "list is no key that is read"),
        (b"}(((N\x85\x85Nu.", "."),
        (b"}N\x85\x85Ns.", "tuple is no key that is read"),
        (b"}(Nu.", "a key has no value"),
        (b"N]a.", "appends to what is NoneType"),
        (b"NNNs.", "sets items of what is NoneType"),
        (b"N)R.", "calls what is no class"),
        (b"NNb.", "sets the state of what is NoneType"),
        (b"cos\nsystem", "a name has no end"),
        (b"NN\x93.", "asks for what is no name"),
        (b"]2.", "the opcode b'2' is not read"),
        (b"I5\n.", "the opcode b'I' is not read"),
        (b"(ios\nsystem\n.", "the opcode b'i' is not read"),
        (b"\x82\x01.", "is not read"),
        (b"P1\n.", "the opcode b'P' is not read"),
        (b"\x97.", "is not read"),
    ],
)
def test_a_pickle_that_is_none_is_refused_with_its_place(body, message):
    with pytest.raises(DataError, match=message) as refused:
        loaded(b"\x80\x04" + body)
    assert str(refused.value).startswith("a.pkl: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("protocol", [0, 1, 6, 255])
def test_other_protocols_are_refused(protocol):
    with pytest.raises(DataError, match=f"protocol {protocol} is not read, 2 to 5 are"):
        loaded(bytes([0x80, protocol]) + b"N.")


DEEPER = b"q\x000ctorch\nSize\nh\x00\x85R"  # a call of what was called before
BOMBS = {
    "doubled tuples": b"]" + b"q\x00h\x00\x86" * 100 + b".",
    "doubled lists": b"](" + b"".join(b"q\x00]h\x00ah\x00a" for _ in range(100)) + b"e.",
    "a far memo": b"]" + b"r\xff\xff\xff\xff" + b"j\xff\xff\xff\xff" + b"a.",
    "many memos": b"]" + b"".join(b"r" + struct.pack("<I", 2**31 + i) for i in range(50_000)) + b".",
    "deep lists": b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep tuples": b")" + b"\x85" * 200_000 + b".",
    "many marks": b"(" * 200_000 + b"t" * 200_000 + b".",
    "deep calls": b"ctorch\nSize\n)R" + b"".join([DEEPER] * 50_000) + b".",
    "deep keys": b"}" + b")" + b"\x85" * 5000 + b"Ns.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_costs_no_more_than_its_length(bomb):
    """In a process of its own, which may take little more memory than it has."""
    code = (
        "import resource, sys; from firstorder.core.formats.unpickle import read\n"
        "from firstorder.core.errors import DataError\n"
        "held = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (held + (128 << 20),) * 2)\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n"
        "try:\n    read(memoryview(sys.stdin.buffer.read()), 'a.pkl')\n"
        "except DataError:\n    pass\nsys.stdout.flush()\nimport os; os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"\x80\x04" + BOMBS[bomb], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-300:]


def test_objects_that_would_fill_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr(unpickle, "available", lambda: 1 << 20)
    with pytest.raises(DataError, match=r"take more than 0\.000488 GiB, half of the free memory"):
        loaded(b"\x80\x04" + b"]" * 10_000 + b".")
    with pytest.raises(DataError, match="half of the free memory"):
        loaded(pickle.dumps([i / 7 for i in range(100_000)]))


def test_a_long_text_is_not_decoded():
    value = loaded(pickle.dumps({"response": "é" * 10_000}))["response"]
    assert (value.name, bytes(value.args).decode()) == ("text", "é" * 10_000)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60), start=st.sampled_from([b"\x80\x04", b"\x80\x02](", b"\x80\x04}("]))
def test_any_bytes_are_read_or_refused_in_one_line(data, start):
    refused = refusal(lambda: loaded(start + data))
    assert refused == "" or refused.startswith("a.pkl: ")
    assert "\n" not in refused


ARRAYS = {
    **{
        name: np.arange(6).reshape(2, 3).astype(name)
        for name in ("i1", "i2", "i4", "i8", "u1", "u2", "f2", "f4", "f8", "?")
    },
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(24).reshape(4, 6)[::2, ::3],
    "large": np.arange(40_000, dtype=np.int32).reshape(100, 400),
    "high bytes": np.full(5000, -1, dtype=np.int64),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "single": np.array(2.5, dtype=np.float32),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_read_as_a_tensor(name, protocol):
    value = ARRAYS[name]
    read_back = array(loaded(pickle.dumps(value, protocol)), "a.pkl")
    expected = torch.tensor(value.tolist(), dtype=read_back.dtype).reshape(value.shape)
    assert str(read_back.dtype).removeprefix("torch.") == str(value.dtype)
    assert torch.equal(read_back, expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_things_of_numpy(protocol):
    assert array(loaded(pickle.dumps(np.array(["a", None, 3], dtype=object), protocol)), "a.pkl") == ["a", None, 3]
    assert array(loaded(pickle.dumps(np.float64(0.1), protocol)), "a.pkl") == 0.1
    assert isinstance(array(loaded(pickle.dumps(np.array(["gsm8k"]), protocol)), "a.pkl"), Inert)
    with pytest.raises(DataError, match="big-endian"):
        array(loaded(pickle.dumps(np.arange(3, dtype=">i4"), protocol)), "a.pkl")


def test_an_array_that_claims_more_than_its_bytes_is_refused():
    data = pickle.dumps(np.arange(3, dtype=np.int64), 4)
    with pytest.raises(DataError, match=r"a\.pkl: 200 numbers of 8 bytes are announced and 24 bytes are there"):
        array(loaded(data.replace(b"K\x03\x85", b"K\xc8\x85")), "a.pkl")
