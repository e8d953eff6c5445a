"""SkyRL's batches as they are trained: the pickle of a TrainingInputBatch a step, with both log-probs and the routes.

Numbers of the responses are the last columns of the sequences, right-aligned; sequences are padded on the left. Routes
have a row for every column; `router_padding_mask` is set where the engine recorded none and the row is made up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from . import names, torch_files, unpickle
from .arrays import dtype, view
from .decided import fills
from .format import Format, Options
from .layout import Notes, on_tokens, route_rows, signed
from .machine import Inert
from .padded import Batch, Row, batch, shape
from .sample import Sample
from .torch_files import aligned, mapping
from .words import said

STEP = re.compile(r"global_step_(\d{1,15})_training_input")
NUMBERS = ("loss_mask", "response_mask", "rollout_logprobs", "action_log_probs", "advantages", "rewards")
COLUMNS = ("base_action_log_probs", "values", "returns", "kl")
ROUTES, UNROUTED = "rollout_expert_indices", "router_padding_mask"
KNOWN = ("numpy", "torch", None)  # forms of a tensor; None is the first of them, before it had a name
HEAD = 1024  # bytes in which a pickle names its class


def read(paths: Sequence[Path], options: Options) -> Iterator[Sample]:
    """The samples of files, in the order of their steps; see `Format.read`."""
    for step, path in sorted((_step(path), path) for path in paths):
        yield from _samples(path, step, options)


def _step(path: Path) -> int:
    found = STEP.search(path.name)
    if found is None:
        raise DataError(f"{path}: its name says no step; call it global_step_N_training_input.pkl")
    return int(found[1])


def _samples(path: Path, step: int, options: Options) -> Iterator[Sample]:
    source = str(path)
    state = _state(unpickle.read(torch_files.contents(path), source), source)
    held = mapping(state.get("batch_dict"), f"{source}: `batch_dict`")
    metadata = state["metadata"] if isinstance(state.get("metadata"), dict) else {}
    unread = [name for name in (*COLUMNS, ROUTES, UNROUTED) if _form(held.get(name)) not in KNOWN]
    wanted = {"sequences", "attention_mask", *NUMBERS, *COLUMNS, ROUTES, UNROUTED} - {*unread}
    made = ((name, _field(held.get(name), f"{source}: `{name}`")) for name in sorted(wanted))
    fields = {name: tensor for name, tensor in made if tensor is not None}
    numbers = {name: fields.get(name) for name in (*NUMBERS, *COLUMNS)}
    rows = batch(source, fields.get("sequences"), fields.get("attention_mask"), numbers)
    routes, unrouted = _routes(fields, rows)
    groups = _groups(metadata, len(rows.tokens))
    added = metadata.get("pad_size")
    count = len(rows.tokens) - (added if type(added) is int and 0 < added < len(rows.tokens) else 0)
    for place in range(count):
        row = rows.row(place)
        mine = None if routes is None else routes[place, row.places]
        none = None if unrouted is None else unrouted[place, row.places] != 0
        notes = {f"`{name}` of a form that is not read, left out": 1 for name in unread}
        yield _sample(step, row, mine, none, groups[place] if groups else None, options, notes)


def _state(value: Any, source: str) -> Mapping[Any, Any]:
    """The state of a TrainingInputBatch: as arguments of what rebuilds it, or set on it."""
    if isinstance(value, Inert) and value.name in names.REBUILT and isinstance(value.args, tuple):
        return mapping(value.args[-1] if value.args else None, source)
    if isinstance(value, Inert) and value.name in names.BATCH:
        return mapping(value.state, source)
    raise DataError(f"{source}: a TrainingInputBatch is expected; is it another pickle?")


def _form(value: Any) -> Any:
    form = value.get("format") if isinstance(value, dict) else None
    return form if isinstance(form, str | None) else "another"


def _field(value: Any, source: str) -> Tensor | None:
    """A tensor as SkyRL writes it: bytes, sizes and kind, or bytes of torch.save where numpy lacks the kind.

    Until version 0.3 of skyrl-train it was the bytes of torch.save alone, for None as well.
    """
    if value is None:
        return None
    held = {"format": "torch", "data": value} if isinstance(value, memoryview) else dict(mapping(value, source))
    data = held.get("data")
    if held.get("format") == "torch" and isinstance(data, memoryview):
        loaded = torch_files.parse(aligned(data), source)
        tensor = loaded.tensor(loaded.value)
        if tensor is None:
            return None
    elif held.get("format") in ("numpy", None):
        kind = dtype(held.get("dtype"))
        if kind is None:
            raise DataError(f"{source}: numbers of kind {said(held.get('dtype'))} are not read")
        tensor = view(aligned(data) if isinstance(data, memoryview) else data, kind, held.get("shape"), source)
    else:
        raise DataError(f"{source}: the format {said(held.get('format'))} is not read; numpy and torch are")
    if not isinstance(tensor, Tensor):
        raise DataError(f"{source}: a tensor is expected; write the dump anew")
    return tensor


def _routes(fields: Mapping[str, Tensor], rows: Batch) -> tuple[Tensor | None, Tensor | None]:
    """The routes, and where there are none, whose sizes are those of the sequences."""
    routes, unrouted = fields.get(ROUTES), fields.get(UNROUTED)
    sizes = rows.tokens.shape
    if routes is not None and (routes.ndim != 4 or routes.shape[:2] != sizes):
        raise DataError(
            f"{rows.source}: `{ROUTES}` must have a row for every token, {shape(rows.tokens)}; got {shape(routes)}"
        )
    if unrouted is not None and unrouted.shape != sizes:
        raise DataError(f"{rows.source}: `{UNROUTED}` must be {shape(rows.tokens)}; got {shape(unrouted)}")
    return routes, unrouted


def _groups(metadata: Mapping[Any, Any], count: int) -> list[int] | None:
    """The prompt of each row, numbered as they come: by uid, by the rows that each prompt has, or by trajectory.

    The trainer takes the uids out before it dumps; trajectories are called `INSTANCE_REPETITION`.
    """
    uids, spans, trajectories = (metadata.get(name) for name in ("uids", "policy_prompt_boundaries", "trajectory_ids"))
    if (names_ := _texts(uids, count)) is not None:
        return _numbered(names_)
    if isinstance(spans, list) and all(isinstance(span, tuple) and len(span) == 2 for span in spans):
        starts = [start for start, _ in spans if type(start) is int and 0 <= start < count]
        if len(starts) == len(spans) > 0:
            places = torch.searchsorted(torch.tensor(sorted(starts)), torch.arange(count), right=True)
            return [int(place) for place in places.sub(1).clamp(min=0)]
    called = _texts(trajectories, count)
    return None if called is None else _numbered([name.rpartition("_")[0] for name in called])


def _texts(values: Any, count: int) -> list[str] | None:
    known = isinstance(values, list) and len(values) == count and all(isinstance(each, str) for each in values)
    return values if known else None


def _numbered(values: Sequence[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def _sample(
    step: int,
    row: Row,
    routes: Tensor | None,
    unrouted: Tensor | None,
    group: int | None,
    options: Options,
    notes: Notes,
) -> Sample:
    everywhere = torch.ones(len(row.tokens), dtype=torch.bool)
    chosen = row.fields.get("loss_mask", row.fields.get("response_mask"))
    if chosen is None:
        raise DataError(f"{row.source}: neither `loss_mask` nor `response_mask` is there; write the dump anew")
    mask = on_tokens(chosen, everywhere, f"{row.source}: `loss_mask`") != 0

    def column(name: str) -> Tensor | None:
        value = row.fields.get(name)
        return None if value is None else on_tokens(value, mask, f"{row.source}: `{name}`")

    rewards = row.fields.get("rewards")
    extra = {name: value for name in COLUMNS if (value := column(name)) is not None}
    return Sample(
        source=row.source,
        step=step,
        tokens=row.tokens,
        mask=mask,
        logp_mu=column("rollout_logprobs"),
        logp_old=column("action_log_probs"),
        advantage=column("advantages"),
        routes=None if routes is None else _route_rows(row, routes, unrouted, options, notes),
        reward=None if rewards is None else float(rewards.double().sum()),
        group=group,
        columns=extra,
        notes=notes,
    )


def _route_rows(row: Row, routes: Tensor, unrouted: Tensor | None, options: Options, notes: Notes) -> Tensor:
    """The rows that the engine recorded; without the mask none can be told from one that is made up."""
    source, length = f"{row.source}: `{ROUTES}`", len(row.tokens)
    if unrouted is None:
        made_up = fills(signed(routes[:-1]), "arange").all(-1)
        if options.fill is None and (count := int(made_up.sum())):
            notes["route rows that are 0, 1, ..., k - 1 in every layer, as padding is"] = count
        return route_rows(routes[:-1], length, source, notes)
    last = int((~unrouted).nonzero().max()) + 1 if not unrouted.all() else 0
    kept = routes[: min(last, length - 1)]
    inside = unrouted[: len(kept)]
    if count := int(inside.sum()):
        notes["route rows missing in the middle"] = count
        kept = torch.where(inside[:, None, None], -1, kept.to(torch.int32))
    return route_rows(kept, length, source, notes)


def _recognise(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = file.read(HEAD)
    except OSError:
        return False
    return first[:1] == b"\x80" and b"training_batch" in first and b"TrainingInputBatch" in first


SKYRL = Format(
    name="skyrl",
    title="SkyRL's dumped_data, a pickle of a TrainingInputBatch a step",
    recognise=_recognise,
    read=read,
    conventions=(
        "numbers of the responses are the last columns of the sequences; attention_mask says which hold tokens",
        "loss_mask says which tokens count; rows that only fill up the batch are left out",
        "a route row is missing where router_padding_mask is set; the row of the last token says nothing",
    ),
)
