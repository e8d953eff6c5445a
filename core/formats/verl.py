"""verl's dumps: `gen_batch.dp`, a pickle of a DataProto, and `tq_batch.pt`, a TensorDict of ragged fields.

A DataProto pads prompts on the left and responses on the right; its TensorDict is written by torch.save, or as arrays
of bytes where VERL_DATAPROTO_SERIALIZATION_METHOD is numpy. Routes are zero where no token has a row: the engine makes
none for the last token, nor for what follows its last request.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from . import names, tensordicts, torch_files, unpickle
from .arrays import array, cast, dtype
from .decided import fills
from .format import Format, Options
from .layout import Notes, on_tokens, one_version, route_rows, signed, whole
from .machine import Inert
from .padded import Row, batch, shape
from .sample import Sample
from .torch_files import mapping
from .words import said

LOGP = {"logp_mu": "rollout_log_probs", "logp_old": "old_log_probs", "entropy": "entropys", "advantage": "advantages"}
COLUMNS = ("ref_log_prob", "values", "returns", "teacher_logprobs")
SCORES = ("token_level_scores", "rm_scores")
ROUTES = "routed_experts"
STEPS = ("min_global_steps", "max_global_steps")
MASKS = ("response_mask", "loss_mask")
WANTED = ("prompts", "responses", "input_ids", "attention_mask", *MASKS, *LOGP.values(), *COLUMNS, *SCORES, ROUTES)
HEAD = 1024  # bytes in which a pickle names its class
META = 1 << 16  # bytes of a meta.json that are read


@dataclass(frozen=True, kw_only=True)
class Dump:
    """What a file holds: the tensors of its fields, and of each response what is no tensor.

    Args:
        source: the file.
        step: the global step, None where the file does not say.
        fields: `[B, ...]`, or a list of one tensor a response where they are ragged.
        uids: of the prompts, or None.
        versions: of the weights, first and last, of each response; empty where unknown.
    """

    source: str
    step: int | None
    fields: Mapping[str, Any]
    uids: Sequence[Any] | None
    versions: Sequence[Sequence[Any]]


def read(paths: Sequence[Path], options: Options) -> Iterator[Sample]:
    """The samples of files, in the order of their steps; see `Format.read`."""
    steps = {path: _beside(path) for path in paths}
    for path in sorted(paths, key=lambda each: (steps[each] is None, steps[each] or 0, str(each))):
        dump = _proto(path) if _is_proto(path) else _queue(path)
        step = dump.step if dump.step is not None else steps[path]
        if step is None:
            raise DataError(
                f"{path}: neither it, a meta.json beside it nor its folder says the step; name its folder N"
            )
        yield from _samples(dump, step, options)


def _beside(path: Path) -> int | None:
    """The step of a file: `global_steps` of the meta.json beside it, else the name of its folder, if it is a number."""
    try:
        with (path.parent / "meta.json").open("rb") as file:
            step = json.loads(file.read(META)).get("global_steps")
        if type(step) is int:
            return step
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    folder = path.absolute().parent.name
    return int(folder) if folder.isascii() and folder.isdecimal() and len(folder) < 16 else None


def _proto(path: Path) -> Dump:
    source = str(path)
    value = unpickle.read(torch_files.contents(path), source)
    state = value.state if isinstance(value, Inert) and value.name in names.PROTO else None
    if not isinstance(state, tuple) or len(state) != 3:
        raise DataError(f"{source}: a DataProto is expected; is it another pickle?")
    written, held, meta = state
    known = mapping(held or {}, source)
    others = {name: array(known[name], f"{source}: `{name}`") for name in ("uid", *STEPS) if name in known}
    step = mapping(meta or {}, source).get("global_steps")
    return Dump(
        source=source,
        step=step if type(step) is int else None,
        fields=_written(written, source),
        uids=_list(others.get("uid")),
        versions=list(zip(*(_list(others[name]) or [] for name in STEPS if name in others), strict=False)),
    )


def _written(written: Any, source: str) -> Mapping[str, Any]:
    """The tensors of a DataProto, in either serialisation."""
    if isinstance(written, memoryview):
        loaded = torch_files.parse(torch_files.aligned(written), source)
        return tensordicts.fields(loaded.value, loaded, WANTED)
    if isinstance(written, tuple) and len(written) == 3 and isinstance(written[2], dict):
        return {name: _bytes(written[2][name], f"{source}: `{name}`") for name in WANTED if name in written[2]}
    raise DataError(f"{source}: the DataProto holds no tensors; write the dump anew")


def _bytes(value: Any, source: str) -> Any:
    """A tensor as kind, sizes and bytes; a ragged one as a layout and a list of them."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], list):
        return [_bytes(each, source) for each in value[1]]
    if not isinstance(value, tuple) or len(value) != 3:
        raise DataError(f"{source}: what it says of a tensor is not understood; write the dump anew")
    kind, data = dtype(value[0]), array(value[2], source)
    if kind is None:
        raise DataError(f"{source}: numbers of kind {said(value[0])} are not read")
    if not isinstance(data, Tensor) or data.ndim != 1 or data.dtype is not torch.uint8:
        raise DataError(f"{source}: its bytes are expected as an array of bytes; write the dump anew")
    return cast(data, kind, value[1], source)


def _queue(path: Path) -> Dump:
    """A batch of the transfer queue; its keys are `UID_SESSION_INDEX`."""
    loaded = torch_files.load(path)
    top = mapping(loaded.value, str(path))
    step, tags = top.get("global_steps"), top.get("tags")
    keys = [key.split("_")[0] if isinstance(key, str) else None for key in _list(top.get("keys")) or []]
    tags = [tag if isinstance(tag, dict) else {} for tag in tags] if isinstance(tags, list) else []
    return Dump(
        source=str(path),
        step=step if type(step) is int else None,
        fields=tensordicts.fields(top.get("tensordict"), loaded, WANTED),
        uids=keys or None,
        versions=[[tag.get(name) for name in STEPS] for tag in tags],
    )


def _samples(dump: Dump, step: int, options: Options) -> Iterator[Sample]:
    prompts = dump.fields.get("prompts")
    rows = _ragged(dump) if isinstance(prompts, list) else _padded(dump)
    numbered: dict[Any, int] = {}
    empty = 0
    for place, (row, routes) in enumerate(rows):
        if not len(row.tokens):
            empty += 1
            continue
        notes = {"rows that are all padding, left out": empty} if empty else {}
        empty = 0
        uid = dump.uids[place] if dump.uids is not None and place < len(dump.uids) else None
        group = numbered.setdefault(uid, len(numbered)) if isinstance(uid, str | int) else None
        versions = dump.versions[place] if place < len(dump.versions) else ()
        known = [version for version in versions if version is not None]
        yield _sample(step, row, routes, known, group, options, notes)


Rows = Iterator[tuple[Row, Tensor | None]]


def _padded(dump: Dump) -> Rows:
    """The rows of a batch without their padding, and their routes."""
    numbers = {name: dump.fields.get(name) for name in (*MASKS, *LOGP.values(), *SCORES)}
    numbers |= {name: each for name in COLUMNS if isinstance(each := dump.fields.get(name), Tensor) and each.ndim == 2}
    prompts, responses, tokens = (dump.fields.get(name) for name in ("prompts", "responses", "input_ids"))
    pair = [each for each in (prompts, responses) if isinstance(each, Tensor) and each.ndim == 2]
    if tokens is None and len(pair) == 2 and len(pair[0]) == len(pair[1]):
        tokens = torch.cat(pair, 1)
    rows = batch(dump.source, tokens, dump.fields.get("attention_mask"), numbers)
    routes = dump.fields.get(ROUTES)
    if routes is not None and (
        not isinstance(routes, Tensor) or routes.ndim != 4 or routes.shape[:2] != rows.tokens.shape
    ):
        raise DataError(f"{dump.source}: `{ROUTES}` must have a row for every token; got {shape(routes)}")
    for place in range(len(rows.tokens)):
        row = rows.row(place)
        yield row, None if routes is None else routes[place, row.places]


def _ragged(dump: Dump) -> Rows:
    """The rows of ragged fields: a prompt and a response of their own lengths."""
    count = len(dump.fields["prompts"])
    wanted = ("prompts", "responses", *MASKS, *LOGP.values(), *COLUMNS, *SCORES, ROUTES)
    columns = {name: _column(dump, name, count) for name in wanted}
    for place in range(count):
        source = f"{dump.source} row {place}"
        mine = {name: each[place] for name, each in columns.items() if each is not None}
        if not {"prompts", "responses"} <= mine.keys():
            raise DataError(f"{source}: `prompts` and `responses` are needed; write the dump anew")
        tokens = torch.cat([whole(mine.pop(name), f"{source}: `{name}`") for name in ("prompts", "responses")])
        routes = mine.pop(ROUTES, None)
        fields = {name: value for name, value in mine.items() if isinstance(value, Tensor) and value.ndim == 1}
        yield Row(source=source, tokens=tokens, fields=fields, places=torch.ones(len(tokens), dtype=torch.bool)), routes


def _column(dump: Dump, name: str, count: int) -> list[Any] | None:
    value = dump.fields.get(name)
    if value is None:
        return None
    if not isinstance(value, list | Tensor) or len(value) != count:
        raise DataError(f"{dump.source}: `{name}` must have {count} rows; got {shape(value)}")
    return list(value)


def _sample(
    step: int,
    row: Row,
    routes: Tensor | None,
    versions: Sequence[Any],
    group: int | None,
    options: Options,
    notes: Notes,
) -> Sample:
    everywhere = torch.ones(len(row.tokens), dtype=torch.bool)
    chosen = row.fields.get("response_mask", row.fields.get("loss_mask"))
    if chosen is None:
        raise DataError(f"{row.source}: `response_mask` is missing; write the dump anew")
    mask = on_tokens(chosen, everywhere, f"{row.source}: `response_mask`") != 0

    def column(name: str) -> Tensor | None:
        value = row.fields.get(name)
        return None if value is None else on_tokens(value, mask, f"{row.source}: `{name}`")

    scores = next((row.fields[name] for name in SCORES if name in row.fields), None)
    return Sample(
        source=row.source,
        step=step,
        tokens=row.tokens,
        mask=mask,
        **{name: column(theirs) for name, theirs in LOGP.items()},
        version=one_version(versions, len(row.tokens), notes) if versions else None,
        routes=None if routes is None else _route_rows(row, routes, options, notes),
        reward=None if scores is None else float(scores.double().sum()),
        group=group,
        columns={name: value for name in COLUMNS if (value := column(name)) is not None},
        notes=notes,
    )


def _route_rows(row: Row, routes: Any, options: Options, notes: Notes) -> Tensor:
    """Zeros at the end are no rows, as a token has k different experts; where all rows are zero they are kept."""
    source, length = f"{row.source}: `{ROUTES}`", len(row.tokens)
    if not isinstance(routes, Tensor) or routes.ndim != 3:
        raise DataError(f"{source} must be tokens x layers x experts a token; got {shape(routes)}")
    real = ~fills(signed(routes), "zeros").all(-1)
    known = routes.shape[-1] > 1 and bool(real.any()) and options.fill != "none"
    end = int(real.nonzero().max()) + 1 if known else length - 1
    return route_rows(routes[:end], length, source, notes)


def _list(value: Any) -> list[Any] | None:
    return value.tolist() if isinstance(value, Tensor) else value if isinstance(value, list) else None


def _first(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _is_proto(path: Path) -> bool:
    first = _first(path)
    return first[:1] == b"\x80" and b"verl.protocol" in first and b"DataProto" in first


def _recognise(path: Path) -> bool:
    first = torch_files.head(path)
    return _is_proto(path) or (
        b"tensordict._reductions" in first and len(b"tensordict").to_bytes(4, "little") + b"tensordict" in first
    )


VERL = Format(
    name="verl",
    title="verl's gen_batch.dp, a pickle of a DataProto, and its tq_batch.pt",
    recognise=_recognise,
    read=read,
    conventions=(
        "prompts are padded on the left and responses on the right; attention_mask says which columns hold tokens",
        "entry r of a response's numbers is of its token r, given those before it",
        "routes are zero where there is no row; rows of zeros at the end are missing, and all zeros are kept",
        "a version is known where min_global_steps and max_global_steps agree",
    ),
)
