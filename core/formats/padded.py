"""Padded batches: rows of tokens with padding on either side, and numbers of the responses in the last columns.

Shapes: B rows, S columns of tokens, R columns of the responses, which are the last R of the S. It does not matter
whether a response ends in the last column or is padded there: the attention mask says which columns hold tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from .words import kind


@dataclass(frozen=True, kw_only=True)
class Row:
    """One response of a batch, without padding.

    Args:
        source: the file and the row, for people.
        tokens: int64 `[L]`.
        fields: of the last tokens each, at most L.
        places: of its tokens among the columns, bool `[S]`.
    """

    source: str
    tokens: Tensor
    fields: Mapping[str, Tensor]
    places: Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A padded batch.

    Args:
        source: the file, for people.
        tokens: `[B, S]`.
        attention: bool `[B, S]`.
        fields: of the responses, `[B, R]` each.
    """

    source: str
    tokens: Tensor
    attention: Tensor
    fields: Mapping[str, Tensor]

    def row(self, place: int) -> Row:
        """One row; it has no tokens where it is all padding."""
        source, kept = f"{self.source} row {place}", self.attention[place]
        if int(kept.int().diff(prepend=torch.zeros(1), append=torch.zeros(1)).abs().sum()) > 2:
            raise DataError(f"{source}: `attention_mask` has holes, and the tokens of a row must be side by side")
        fields = {name: values[place, kept[-values.shape[1] :]] for name, values in self.fields.items()}
        return Row(source=source, tokens=self.tokens[place, kept].long(), fields=fields, places=kept)


def batch(source: str, tokens: Any, attention: Any, fields: Mapping[str, Any]) -> Batch:
    """A batch whose sizes agree.

    Args:
        source: the file, for people.
        tokens: `[B, S]`.
        attention: `[B, S]`, 0 on padding.
        fields: of the responses, those that are there.

    Raises:
        DataError: a size differs; the field is named.
    """
    for name, value in (("tokens", tokens), ("attention_mask", attention)):
        if not isinstance(value, Tensor) or value.ndim != 2 or not value.shape[1] or value.is_complex():
            raise DataError(f"{source}: `{name}` must be of rows and columns; got {shape(value)}")
    if tokens.shape != attention.shape:
        raise DataError(f"{source}: the tokens are {shape(tokens)} and `attention_mask` {shape(attention)}")
    known = {name: value for name, value in fields.items() if value is not None}
    for name, value in known.items():
        fits = isinstance(value, Tensor) and value.ndim == 2 and not value.is_complex()
        if not fits or len(value) != len(tokens) or not 0 < value.shape[1] <= tokens.shape[1]:
            raise DataError(f"{source}: `{name}` must have {len(tokens)} rows of a response; got {shape(value)}")
    return Batch(source=source, tokens=tokens, attention=attention != 0, fields=known)


def shape(value: Any) -> str:
    """What a value is, for people."""
    return " x ".join(map(str, value.shape)) if isinstance(value, Tensor) else kind(value)
