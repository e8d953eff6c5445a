import json
import os
import threading
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import DataError
from firstorder.core.formats.fields import column, flags, floats, integer, ints, nested, number, text
from firstorder.core.formats.lines import LINE, Line, head, lines


def written(folder, content, name="a.jsonl"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path, **options):
    with pytest.raises(DataError) as error:
        list(lines(path, **options))
    return str(error.value)


def test_objects_come_in_order_with_their_lines(tmp_path):
    path = written(tmp_path, '{"a": 1}\n\n  \r\n{"a": 2}\r\n{"a": 3}')
    assert [(line.source, line.fields) for line in lines(path)] == [
        (f"{path} line 1", {"a": 1}),
        (f"{path} line 4", {"a": 2}),
        (f"{path} line 5", {"a": 3}),
    ]


def test_an_empty_file_has_no_lines(tmp_path):
    assert list(lines(written(tmp_path, ""))) == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"a": 1}\n{"a": \xff}\n', "line 2: byte 7 is no UTF-8"),
        (b'{"a": 1}\n{"a": 1', "line 2: the last line is cut off"),
        (b'{"a": 1\n{"a": 1}\n', "line 1: no JSON: Expecting"),
        (b"[1, 2]\n", "line 1: must be an object, got a list"),
        (b"3\n", "line 1: must be an object, got a whole number"),
        (b"null\n", "line 1: must be an object, got null"),
        (b'{"a": 1, "b": 2, "a": 3}\n', "line 1: names 'a' twice"),
        (b'{"b": {"a": 1, "a": 3}}\n', "line 1: names 'a' twice"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "line 1: nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}\n", "line 1: a whole number with too many digits"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_no_line_is_refused_with_its_number(tmp_path, content, what):
    path = written(tmp_path, content)
    assert refused(path).startswith(f"{path} {what}")
    assert "; " in refused(path)


@pytest.mark.parametrize(("limit", "content"), [("NESTED", '{"a": [{}, 1]}'), ("VALUES", '{"a": [1, 2, 3]}')])
def test_a_line_of_more_values_than_memory_holds_is_refused(tmp_path, monkeypatch, limit, content):
    path = written(tmp_path, content)
    monkeypatch.setattr(f"firstorder.core.formats.lines.{limit}", 3)
    assert len(list(lines(path))) == 1
    monkeypatch.setattr(f"firstorder.core.formats.lines.{limit}", 2)
    assert f"{path} line 1: more than " in refused(path)


def test_a_line_of_a_gibibyte_is_refused_without_being_read(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n')
        file.truncate(1 << 30)  # the rest are zeros that take no room on the disk
    tracemalloc.start()
    assert refused(path) == f"{path} line 2: longer than 256 MiB; is it JSON lines, one object a line?"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * LINE


def test_a_line_may_be_as_long_as_the_limit_and_no_longer(tmp_path):
    path = written(tmp_path, b'{"a": 1}\n{"a": 2}')
    assert len(list(lines(path, limit=8))) == 2
    assert "line 1: longer than 7 bytes" in refused(path, limit=7)


def test_nan_and_infinities_are_no_numbers(tmp_path):
    (line,) = lines(written(tmp_path, '{"a": [NaN, -Infinity, 1e999, null, 2, -0.5]}'))
    values = floats(line, "a", 6)
    assert values.isnan().tolist() == [True] * 4 + [False] * 2
    assert values[4:].tolist() == [2.0, -0.5]
    with pytest.raises(DataError, match="`a` must hold whole numbers, got nan at 0"):
        ints(line, "a")


@pytest.mark.parametrize(
    "change", [lambda f: f.write(b'{"a": 3}\n'), lambda f: f.truncate(0)], ids=["grows", "shrinks"]
)
def test_a_file_that_changes_meanwhile_is_refused(tmp_path, change):
    path = written(tmp_path, b'{"a": 1}\n' * 3)
    reading = lines(path)
    next(reading)
    with path.open("ab") as file:
        change(file)
    with pytest.raises(DataError, match=r"a.jsonl line \d+: the file changed while it was read; wait"):
        list(reading)


def test_a_long_file_that_shrinks_meanwhile_is_refused(tmp_path):
    path = written(tmp_path, b'{"a": 1}\n' * 100_000)
    reading = lines(path)
    next(reading)
    os.truncate(path, 500_000)
    with pytest.raises(DataError, match=r"line \d+: the file changed while it was read"):
        list(reading)


def test_folders_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "cannot be read" in refused(tmp_path)
    assert "not a regular file" in refused(tmp_path / "pipe.jsonl")  # and no writer is waited for
    assert "not a regular file" in refused(type(tmp_path)("/dev/null"))
    assert "cannot be read: No such file" in refused(tmp_path / "nothing.jsonl")
    for name in ("", "pipe.jsonl", "nothing.jsonl"):
        assert head(tmp_path / name) is None


def test_the_head_of_a_file_is_its_first_bytes(tmp_path):
    assert head(written(tmp_path, "abc" * 10), 4) == b"abca"


def line(**fields):
    return Line(source="f line 7", fields=fields)


@pytest.mark.parametrize(
    ("read", "value", "what"),
    [
        (ints, [1, 2.0], "must hold whole numbers, got 2.0 at 1"),
        (ints, [1, True], "must hold whole numbers, got True at 1"),
        (ints, [1, None], "must hold whole numbers, got null at 1"),
        (ints, [1 << 63], "whole number of more than 64 bits"),
        (ints, {"a": 1}, "must be a list, got an object"),
        (floats, [1, "2"], "must hold numbers, got '2' at 1"),
        (floats, [True], "must hold numbers, got True at 0"),
        (floats, [10**400], "whole number of more than 64 bits"),
        (flags, [1, 2], "must hold truth values, got 2 at 1"),
        (flags, [True, None], "must hold truth values, got null at 1"),
        (flags, [0, float("nan")], "must hold truth values, got nan at 1"),
        (integer, -1, "must be a whole number >= 0, got -1"),
        (integer, True, "must be a whole number >= 0, got True"),
        (integer, 1 << 63, "must be a whole number >= 0, got 9223372036854775808"),
        (number, "1", "must hold numbers, got '1' at 0"),
        (text, 1, "must be a string, got a whole number"),
        (nested, [[[1], [2]], [[3]]], "must be lists (token, layer, expert) of one length"),
        (nested, [[[1], 2]], "must be lists (token, layer, expert) of one length"),
        (nested, [], "must be lists (token, layer, expert) of one length"),
        (nested, [[[]]], "must be lists (token, layer, expert) of one length"),
    ],
    ids=str,
)
def test_a_field_of_another_kind_is_refused_with_its_name_and_place(read, value, what):
    with pytest.raises(DataError) as error:
        read(line(a=value), "a")
    assert str(error.value).startswith("f line 7: `a` ")
    assert what in str(error.value)


def test_a_list_of_another_length_and_a_missing_field_are_refused():
    with pytest.raises(DataError, match="f line 7: `a` has 2 entries, and there are 3 tokens"):
        floats(line(a=[1, 2]), "a", 3)
    with pytest.raises(DataError, match="f line 7: lacks `b`"):
        ints(line(a=[1]), "b")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False))))
def test_numbers_come_back_to_the_last_digit(values):
    read = floats(line(a=json.loads(json.dumps(values))), "a", len(values))
    assert read.dtype == torch.float64
    for value, got in zip(values, read.tolist(), strict=True):
        assert got != got if value is None else got == float(value)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=12), st.sampled_from([b'{"a": [1]}', b"\n", b'{"a": 1, "a": 2}', b"\r\n"])))
)
def test_any_bytes_are_lines_or_refused_with_the_number_of_one(tmp_path_factory, parts):
    path = written(tmp_path_factory.getbasetemp(), b"".join(parts), "any.jsonl")
    message = ""
    try:
        assert all(isinstance(each.fields, dict) for each in lines(path, limit=40))
    except DataError as error:
        message = str(error)
    assert message == "" or message.startswith(f"{path} line ")


def test_columns_hold_truth_values_and_numbers_and_nothing_else():
    assert column(line(a=[True, None, 2]), "a", 3)[::2].tolist() == [1.0, 2.0]
    for other in ([1], ["x", 1, 2], [{}, {}, {}], 3, None):
        assert column(line(a=other), "a", 3) is None


def test_lists_of_lists_of_lists_become_a_tensor():
    ids = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(nested(line(a=ids.tolist()), "a"), ids)


def test_reading_does_not_wait_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=head, args=(tmp_path / "pipe",))
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
