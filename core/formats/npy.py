"""NumPy's `.npy` form, read without NumPy: a magic, a header that is a Python dict, the numbers.

    \\x93NUMPY, version (2 bytes), length of the header (2 or 4 bytes), header, data

Source: numpy, `numpy/lib/format.py`, versions 1.0 to 3.0. Routes are whole numbers in C order; nothing
else is read.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from .lines import Line
from .wire import as_ids, decode_bytes

MAGIC = b"\x93NUMPY"
HEADER = 1 << 12  # bytes of a header: three entries take about 100, and NumPy pads them to 128
TYPES = {"|u1": torch.uint8, "|i1": torch.int8, "<u2": torch.uint16, "<i2": torch.int16, "<i4": torch.int32}
TYPES |= {"<i8": torch.int64}
ENTRIES = {
    "descr": re.compile(rb"'descr'\s*:\s*'([|<>=]\w+)'"),
    "order": re.compile(rb"'fortran_order'\s*:\s*(True|False)"),
    "shape": re.compile(rb"'shape'\s*:\s*\(([\d,\s]*)\)"),
}


def decode_npy(line: Line, text: str) -> Tensor:
    """Routes from a `.npy` file in base64, int16 `[N, M, K]`.

    Raises:
        DataError: it is no such file, or holds another number of ids than it says.
    """
    raw = decode_bytes(line, text)
    body, header = _header(line, raw)
    found = {name: pattern.search(header) for name, pattern in ENTRIES.items()}
    descr, order, shape = (None if match is None else match[1].decode() for match in found.values())
    dtype = TYPES.get(descr or "")
    if dtype is None or order != "False" or shape is None:
        raise line.wrong(f"routes must be whole numbers in C order, got {header[:80].decode('latin-1')!a}")
    sizes = [int(size) for size in shape.replace(" ", "").split(",") if size.strip()]
    if len(sizes) != 3:
        raise line.wrong(f"routes must be tokens x layers x experts a token, got {' x '.join(map(str, sizes))}")
    if len(raw) - body != math.prod(sizes) * dtype.itemsize:
        raise line.wrong(f"routes hold {len(raw) - body} bytes, and their header says {math.prod(sizes)} ids")
    data = torch.frombuffer(raw[body:], dtype=dtype) if math.prod(sizes) else torch.empty(0, dtype=dtype)
    return as_ids(line, data.reshape(sizes))


def _header(line: Line, raw: bytearray) -> tuple[int, bytes]:
    """Where the numbers begin, and what is written before them."""
    if not raw.startswith(MAGIC) or len(raw) < 12:
        raise line.wrong("routes are no .npy file in base64")
    start = 10 if raw[6] == 1 else 12
    size = int.from_bytes(raw[8:start], "little")
    if raw[6] not in (1, 2, 3) or size > HEADER or start + size > len(raw):
        raise line.wrong("routes are a .npy file whose header is broken")
    return start + size, bytes(raw[start : start + size])
