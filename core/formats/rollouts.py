"""Responses in the files of slime and miles: of a rollout file as they were sampled, of a train file as trained.

Tokens and masks are made at once, as files are joined by them; every other number only when its sample is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from . import torch_files
from .layout import on_tokens, whole
from .torch_files import Loaded, mapping
from .words import kind, said

TRAIN_VERSION = 2
NUMBERS = ("rollout_log_probs", "log_probs", "advantages", "entropy")
COLUMNS = ("ref_log_probs", "teacher_log_probs", "values", "returns", "kl")
ENGINE = ("rollout_routed_experts", "rollout_top_p_token_offsets")


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response in a rollout or a train file, under names that both share.

    Args:
        source: the file and the place in it.
        tokens: int64 `[L]`.
        length: R, of the response.
        mask: bool `[L]`, or None where the file has no mask.
        values: what makes each tensor or list that the file holds of it, by its name there.
        own: everything else that the file says of it.
    """

    source: str
    tokens: Tensor
    length: int
    mask: Tensor | None
    values: Mapping[str, Callable[[], Any]]
    own: Mapping[str, Any] = field(repr=False)

    def value(self, name: str) -> Any:
        """A tensor or a list, None where the file has none."""
        make = self.values.get(name)
        return None if make is None else make()

    def column(self, name: str, mask: Tensor) -> Tensor | None:
        """Numbers of the response on the axis of the tokens, 0 off the mask."""
        value = self.value(name)
        return None if value is None else on_tokens(value, mask, f"{self.source}: `{name}`", self.length)


def rollout_file(path: Path) -> list[Response]:
    """The responses of a rollout file."""
    loaded = torch_files.load(path)
    samples = listed(mapping(loaded.value, str(path)), "samples", str(path))
    made = (
        _response(loaded, own, f"{path} sample {place}", "response_length", "loss_mask")
        for place, own in enumerate(samples)
    )
    return bounded(made, loaded)


def train_file(path: Path) -> list[Response]:
    """The responses of a train file."""
    loaded = torch_files.load(path)
    top = mapping(loaded.value, str(path))
    if top.get("format_version") != TRAIN_VERSION:
        raise DataError(f"{path}: `format_version` must be {TRAIN_VERSION}; got {said(top.get('format_version'))}")
    raw = top.get("raw_reward")
    made = (
        _response(loaded, _rewarded(own, raw), f"{path} sample {place}", "response_lengths", "loss_masks")
        for place, own in enumerate(listed(top, "samples", str(path)))
    )
    return bounded(made, loaded)


def _rewarded(own: Any, raw: Any) -> Any:
    """A trained sample with the reward that it had before rewards were normalised, where the file keeps it."""
    place = own.get("rollout_position") if isinstance(own, dict) else None
    known = isinstance(raw, list) and type(place) is int and 0 <= place < len(raw)
    return {**own, "raw_reward": raw[place]} if known else own


def listed(top: Mapping[str, Any], name: str, source: str) -> list[Any]:
    """A list of a dump, in which nothing stands twice."""
    value = top.get(name)
    if not isinstance(value, list):
        raise DataError(f"{source}: `{name}` must be a list; got {kind(value)}")
    if len({id(each) for each in value}) < len(value):
        raise DataError(f"{source}: `{name}` holds one sample twice; write the dump anew")
    return value


def bounded(responses: Iterable[Response], loaded: Loaded) -> list[Response]:
    """Responses that have no more tokens than their file has bytes, which one can have whose samples share tokens."""
    kept, tokens = [], 0
    for response in responses:
        tokens += len(response.tokens)
        if tokens > loaded.size:
            raise DataError(f"{response.source}: there are more tokens than bytes in the file; write the dump anew")
        kept.append(response)
    return kept


def _response(loaded: Loaded, sample: Any, source: str, length_name: str, mask_name: str) -> Response:
    own = mapping(sample, source)
    tokens = whole(loaded.tensor(own.get("tokens"), "`tokens`"), f"{source}: `tokens`")
    length = counted(own.get(length_name), len(tokens), f"{source}: `{length_name}`")
    names = (*NUMBERS, *COLUMNS, *ENGINE)
    values = {name: partial(loaded.tensor, own[name], f"`{name}`") for name in names if own.get(name) is not None}
    mask = loaded.tensor(own.get(mask_name), f"`{mask_name}`")
    return Response(
        source=source,
        tokens=tokens,
        length=length,
        mask=None if mask is None else masked(mask, len(tokens), length, f"{source}: `{mask_name}`"),
        values=values,
        own=own,
    )


def masked(value: Any, length: int, response: int, source: str) -> Tensor:
    """A mask of a response on the axis of the tokens, bool `[L]`."""
    return on_tokens(value, torch.ones(length, dtype=torch.bool), source, response) != 0


def counted(value: Any, length: int, source: str) -> int:
    """The length of a response, which its tokens must be able to hold."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = int(value)
    if type(value) is not int or not 0 <= value <= length:
        raise DataError(f"{source} must be 0 to {length}, the tokens of the sample; got {said(value)}")
    return value
