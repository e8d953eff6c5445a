"""Routes as text, and where their rows belong.

Shapes: L tokens, N rows, M layers, K experts a token.

| who | what |
|---|---|
| NeMo-RL | `nrlre1:<dtype>:<N>x<M>x<K>:<base64>`, int8, int16 or int32, -1 where missing, N = L - 1 or L |
| vLLM | a `.npy` file in base64, uint8, uint16 or int32, `[N, M, K]`, see `npy`; or lists of lists of lists |
| SGLang | int32 in base64, flat |

Sizes are checked before anything is decoded. An engine runs all tokens but the last, so L tokens have L - 1 rows, and
row t is the routing of token t; a row L - 1, where there is one, belongs to a token that nothing was sampled after.
Source: NVIDIA-NeMo/RL, `nemo_rl/utils/routed_experts_codec.py`.
"""

from __future__ import annotations

import base64
import binascii
import math
import re

import torch
from torch import Tensor

from .lines import Line, short

ENVELOPE = re.compile(r"nrlre1:(int8|int16|int32):(\d{1,9})x(\d{1,9})x(\d{1,9}):")
DTYPES = {"int8": torch.int8, "int16": torch.int16, "int32": torch.int32}
MOST = 1 << 28  # ids of a response, 512 MiB: 131,072 tokens, 61 layers of 8 are 2^26. Few rows can claim many tokens
LARGEST = (1 << 15) - 1  # an expert's id: routes are int16


def decode_envelope(line: Line, text: str) -> Tensor:
    """Routes of NeMo-RL's form, int16 `[N, M, K]`.

    Raises:
        DataError: it is not of the form, or holds another number of ids than it says.
    """
    found = ENVELOPE.match(text)
    if not found:
        raise line.wrong(f"routes must be `nrlre1:<dtype>:<N>x<M>x<K>:<base64>`, got {short(text[:40])}")
    shape = [int(size) for size in found.groups()[1:]]
    return as_ids(line, decode(line, text[found.end() :], DTYPES[found[1]], math.prod(shape)).reshape(shape))


def decode(line: Line, text: str, dtype: torch.dtype, count: int | None = None) -> Tensor:
    """Numbers from base64, flat.

    Args:
        line: where they are.
        text: base64, padded.
        dtype: of a number.
        count: how many there must be; what fits where None.

    Raises:
        DataError: it is no base64, or holds another number of them.
    """
    raw = decode_bytes(line, text, None if count is None else count * dtype.itemsize)
    if len(raw) % dtype.itemsize:
        raise line.wrong(f"routes hold {len(raw)} bytes, no whole number of {dtype.itemsize}-byte ids")
    return torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def decode_bytes(line: Line, text: str, size: int | None = None) -> bytearray:
    """Bytes from base64, as many as are wanted where that is said.

    Raises:
        DataError: it is no base64, or holds another number of them.
    """
    held = len(text) // 4 * 3 - text[-2:].count("=")
    if size is not None and (len(text) % 4 or held != size):
        raise line.wrong(f"routes must hold {size} bytes, got {held} in base64")
    try:
        return bytearray(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise line.wrong(f"routes are no base64 ({error})") from None


def as_ids(line: Line, values: Tensor) -> Tensor:
    """Ids of experts as int16.

    Raises:
        DataError: one is no id, or there is no layer or expert.
    """
    if not values.shape[1] or not values.shape[2]:
        raise line.wrong(f"routes must have a layer and an expert, got {' x '.join(map(str, values.shape))}")
    if not values.numel() or values.dtype in (torch.int8, torch.uint8, torch.int16):
        return values.to(torch.int16)
    wide = values.to(torch.int64)
    low, high = int(wide.min()), int(wide.max())
    if low < -LARGEST - 1 or high > LARGEST:
        raise line.wrong(f"ids of experts must be at most {LARGEST}, got {high if high > LARGEST else low}")
    return wide.to(torch.int16)


def laid(line: Line, rows: Tensor, length: int, start: int = 0) -> tuple[Tensor, dict[str, int]]:
    """Rows in the places of their tokens, int16 `[L, M, K]`, -1 elsewhere, and what there was to note.

    Args:
        line: where they are.
        rows: int16 `[N, M, K]`.
        length: tokens L.
        start: the token of the first row.

    Raises:
        DataError: there are more rows than tokens, or more ids than memory should hold.
    """
    if start + len(rows) > length:
        raise line.wrong(f"routes have {len(rows)} rows from token {start} on, and there are {length} tokens")
    if length * rows.shape[1] * rows.shape[2] > MOST:
        raise line.wrong(f"routes of {length} tokens, {rows.shape[1]} layers and {rows.shape[2]} experts are too many")
    routes = rows.new_full((length, *rows.shape[1:]), -1)
    routes[start : start + len(rows)] = rows
    routes[-1] = -1
    notes = {
        "route rows missing at the start": min(start, length - 1),
        "route rows missing at the end": max(length - 1 - start - len(rows), 0),
        "route rows of the last token left out": int(start + len(rows) == length),
    }
    return routes, {name: count for name, count in notes.items() if count}
