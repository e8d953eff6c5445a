import base64
import io

import numpy
import pytest
import torch
from encoders import encode, encode_envelope, encode_npy
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import DataError
from firstorder.core.formats.lines import Line
from firstorder.core.formats.npy import decode_npy
from firstorder.core.formats.wire import decode, decode_envelope, laid

LINE = Line(source="f line 7", fields={})
SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3))


def ids(shape, dtype=torch.int16, low=-1, high=100, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def refused(call, *arguments, **options):
    with pytest.raises(DataError) as error:
        call(LINE, *arguments, **options)
    assert str(error.value).startswith("f line 7: ")
    return str(error.value)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([torch.int8, torch.int16, torch.int32]), st.integers(0, 99))
def test_an_envelope_comes_back(shape, dtype, seed):
    routes = ids(shape, dtype, seed=seed)
    text = encode_envelope(routes)
    assert text.startswith(f"nrlre1:{str(dtype)[6:]}:{shape[0]}x{shape[1]}x{shape[2]}:")
    assert torch.equal(decode_envelope(LINE, text), routes.to(torch.int16))


def test_an_envelope_is_the_bytes_in_c_order():
    routes = torch.tensor([[[0, 1]], [[2, -1]]], dtype=torch.int16)
    assert encode_envelope(routes) == "nrlre1:int16:2x1x2:AAABAAIA//8="
    assert encode_envelope(routes.transpose(0, 2)) == "nrlre1:int16:2x1x2:AAACAAEA//8="


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "routes must be `nrlre1:<dtype>:<N>x<M>x<K>:<base64>`, got ''"),
        ("nrlre2:int16:2x1x2:AAAA", "routes must be `nrlre1"),
        ("nrlre1:uint16:2x1x2:AAAA", "routes must be `nrlre1"),
        ("nrlre1:int16:2x1:AAAA", "routes must be `nrlre1"),
        ("nrlre1:int16:2x1x-2:AAAA", "routes must be `nrlre1"),
        ("nrlre1:int16:999999999x999999999x999999999:AAAA", "routes must hold 1999999994"),
        ("nrlre1:int16:2x1x2:AAABAAIA/w==", "routes must hold 8 bytes, got 7 in base64"),
        ("nrlre1:int16:2x1x2:AAABAAIA//", "routes must hold 8 bytes"),
        ("nrlre1:int16:2x1x2:AAABAA*A//8=", "routes are no base64"),
        ("nrlre1:int16:2x1x2:AAAB\u00e9AIA//8", "routes must hold 8 bytes"),
        ("nrlre1:int16:2x1x2:AAAB\u00e9AIA//8=", "routes are no base64"),
        ("nrlre1:int16:2x0x2:", "routes must have a layer and an expert, got 2 x 0 x 2"),
        ("nrlre1:int32:1x1x1:AACAAA==", "ids of experts must be at most 32767, got 8388608"),
    ],
)
def test_an_envelope_that_does_not_fit_is_refused_before_it_is_decoded(text, what):
    assert what in refused(decode_envelope, text)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(["|u1", "|i1", "<u2", "<i2", "<i4", "<i8"]), st.integers(0, 99))
def test_a_file_of_numpy_comes_back(shape, kind, seed):
    array = numpy.random.default_rng(seed).integers(0, 100, shape).astype(kind)
    held = io.BytesIO()
    numpy.save(held, array)
    assert decode_npy(LINE, base64.b64encode(held.getvalue()).decode()).tolist() == array.tolist()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_form_is_read(version):
    held = io.BytesIO()
    numpy.lib.format.write_array(held, numpy.arange(6, dtype=numpy.uint8).reshape(1, 2, 3), version)
    assert decode_npy(LINE, base64.b64encode(held.getvalue()).decode()).tolist() == [[[0, 1, 2], [3, 4, 5]]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_what_is_written_is_read_by_numpy(dtype):
    routes = ids((3, 2, 4), torch.int64, low=0).to(dtype)
    array = numpy.load(io.BytesIO(base64.b64decode(encode_npy(routes))))
    assert array.dtype == str(dtype)[6:]
    assert array.tolist() == routes.tolist()


def saved(array, **options):
    held = io.BytesIO()
    numpy.save(held, array, **options)
    return held.getvalue()


WHOLE = saved(numpy.zeros((2, 3, 4), numpy.uint8))


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "routes are no .npy file"),
        (b"PK\x03\x04" * 10, "routes are no .npy file"),
        (WHOLE[:9], "routes are no .npy file"),
        (WHOLE[:40], "header is broken"),
        (WHOLE[:6] + b"\x09" + WHOLE[7:], "header is broken"),
        (WHOLE[:8] + b"\xff\xff" + WHOLE[10:], "header is broken"),
        (WHOLE[:-1], "routes hold 23 bytes, and their header says 24 ids"),
        (WHOLE + b"0", "routes hold 25 bytes, and their header says 24 ids"),
        (WHOLE.replace(b"(2, 3, 4)", b"(2, 3, 4, 1)"), "tokens x layers x experts a token, got 2 x 3 x 4 x 1"),
        (WHOLE.replace(b"(2, 3, 4), }  ", b"(9999999, 9999999999, 99), }"), "and their header says"),
        (saved(numpy.zeros((2, 3, 4), numpy.float32)), "routes must be whole numbers in C order"),
        (saved(numpy.asfortranarray(numpy.zeros((2, 3, 4), numpy.uint8))), "routes must be whole numbers in C order"),
        (saved(numpy.array([[[{"a": 1}]]]), allow_pickle=True), "routes must be whole numbers in C order"),
        (saved(numpy.zeros((2, 0, 4), numpy.uint8)), "routes must have a layer and an expert"),
        (saved(numpy.full((1, 1, 1), 40_000, numpy.uint16)), "ids of experts must be at most 32767, got 40000"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_file_of_numpy_that_does_not_fit_is_refused(raw, what):
    assert what in refused(decode_npy, base64.b64encode(raw).decode())


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=6), st.integers(0, len(WHOLE) - 1))
def test_a_broken_file_of_numpy_gives_routes_or_names_the_line(patch, place):
    raw = WHOLE[:place] + patch + WHOLE[place + len(patch) :]
    message = ""
    try:
        assert decode_npy(LINE, base64.b64encode(raw).decode()).dtype == torch.int16
    except DataError as error:
        message = str(error)
    assert message == "" or message.startswith("f line 7: ")


def test_flat_numbers_must_fill_their_bytes():
    values = torch.tensor([1, -1, 70_000], dtype=torch.int32)
    assert torch.equal(decode(LINE, encode(values), torch.int32), values)
    assert "routes hold 3 bytes, no whole number of 4-byte ids" in refused(decode, "AAAA", torch.int32)
    assert decode(LINE, "", torch.int32).tolist() == []


def test_rows_are_laid_in_the_places_of_their_tokens():
    rows = ids((4, 2, 3), low=0)
    routes, notes = laid(LINE, rows, 5)
    assert torch.equal(routes[:4], rows)
    assert (routes[4] == -1).all()
    assert notes == {}
    routes, notes = laid(LINE, rows, 8, 2)
    assert torch.equal(routes[2:6], rows)
    assert (routes[[0, 1, 6, 7]] == -1).all()
    assert notes == {"route rows missing at the start": 2, "route rows missing at the end": 1}


def test_a_row_of_the_last_token_is_left_out_and_noted():
    rows = ids((4, 2, 3), low=0)
    routes, notes = laid(LINE, rows, 4)
    assert torch.equal(routes[:3], rows[:3])
    assert (routes[3] == -1).all()
    assert notes == {"route rows of the last token left out": 1}


def test_more_rows_than_tokens_and_what_no_memory_holds_are_refused():
    assert "routes have 4 rows from token 1 on, and there are 4 tokens" in refused(laid, ids((4, 2, 3)), 4, 1)
    few = torch.zeros(1, 1000, 1000, dtype=torch.int16)
    assert "are too many" in refused(laid, few, 1_000_000)
