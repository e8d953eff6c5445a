"""Dumps of miles: the rollout file of slime, and a train file for every rank, whose context-parallel slices are joined.

Under context parallelism of size C a sequence is cut into 2C chunks, and rank c holds chunks c and 2C - 1 - c: the
numbers of its response are those of both, one after the other. Files of policy_loss_debug hold the numbers of a
microbatch and no tokens; they are read where there is nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from . import torch_files
from .format import Format, Options
from .layout import numbers, whole
from .rollouts import COLUMNS, NUMBERS, Response, bounded, counted, listed, masked, rollout_file
from .sample import Sample
from .slime import by_step, has_shards, join, kind, only
from .torch_files import Loaded, mapping
from .words import kind as what
from .words import said

SLICED = (*NUMBERS, *COLUMNS)
IDS = {"sample_indices": "sample_index", "partition": "rollout_position"}
CALL = re.compile(r"rank_?(\d+)_call_(\d+)")
LOSS = ("train_log_probs", "old_log_probs", "rollout_log_probs", "advantages", "local_loss_mask")
LONGEST = 1 << 22  # tokens of a sequence, where its length is a claim without tokens


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What one rank holds of a rollout: whole sequences, and its slices of the numbers of their responses.

    Args:
        source: the file.
        data: `rollout_data`, columns of one entry a sequence.
        tensors: of the file.
        rank, size: of context parallelism, None where the file does not say.
        padded: whether the sequences are cut as if they were all as long as `max_seq_lens` (qkv_format bshd).
    """

    source: str
    data: Mapping[str, Any]
    tensors: Loaded
    rank: int | None
    size: int | None
    padded: bool


def read(paths: Sequence[Path], options: Options) -> Iterator[Sample]:
    """The samples of files, in the order of their rollouts; see `Format.read`."""
    kinds = {path: kind(path) for path in paths}
    if set(kinds.values()) == {"loss"}:
        for path in sorted(paths, key=_call):
            yield from _losses(path)
        return
    for step, files in by_step([path for path in paths if kinds[path] != "loss"]).items():
        rollouts = [path for path in files if kinds[path] == "rollout"]
        only(rollouts, step)
        shards = [_shard(path) for path in files if kinds[path] == "shard"]
        trained = [each for group in _groups(shards) for each in bounded(_joined(group), group[0].tensors)]
        rolled = rollout_file(rollouts[0]) if rollouts else None
        yield from join(step, rolled, _ordered(trained) if shards else None)


def pieces(total: int, response: int, rank: int, size: int, padded: int | None = None) -> tuple[slice, slice]:
    """The entries of a response that a rank of context parallelism holds, in two pieces.

    Entry r is of token P + r and is made at position P + r - 1, and the rank that holds this position holds the entry.

    Args:
        total: L, tokens of the sequence.
        response: R of them.
        rank, size: of context parallelism.
        padded: the length that the sequence is padded to before it is cut, where it is.
    """
    prompt = total - response
    chunk = -(-(total if padded is None else padded) // (2 * size))
    cut = []
    for place in (rank, 2 * size - 1 - rank):
        start, stop = max(place * chunk, prompt - 1), min((place + 1) * chunk, total - 1)
        cut.append(slice(start - prompt + 1, max(start, stop) - prompt + 1))
    return cut[0], cut[1]


def _ordered(trained: list[Response]) -> list[Response]:
    """In the order of the rollout where every response knows its place."""
    for name in ("rollout_position", "sample_index"):
        if all(type(each.own.get(name)) is int for each in trained):
            return sorted(trained, key=lambda each: int(each.own[name]))
    return trained


def _shard(path: Path) -> Shard:
    loaded = torch_files.load(path)
    top = mapping(loaded.value, str(path))
    rank, size = top.get("cp_rank"), top.get("cp_size")
    if (rank is None) != (size is None) or (type(rank) is int and not (type(size) is int and 0 <= rank < size)):
        raise DataError(f"{path}: `cp_rank` {said(rank)} of `cp_size` {said(size)} is no rank; write the dump anew")
    return Shard(
        source=str(path),
        data=mapping(top.get("rollout_data"), f"{path}: `rollout_data`"),
        tensors=loaded,
        rank=rank if type(rank) is int else None,
        size=size if type(size) is int else None,
        padded=top.get("qkv_format") == "bshd",
    )


def _groups(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Shards of the same sequences, which are those of one context-parallel group, in the order of their ranks."""
    found: dict[tuple[bytes, ...], list[Shard]] = {}
    for shard in shards:
        found.setdefault(tuple(tokens.numpy().tobytes() for tokens in _tokens(shard)), []).append(shard)
    return [_complete(group) for group in found.values()]


def _complete(group: list[Shard]) -> list[Shard]:
    """A slice of every rank; without ranks, the one that has log-probs, as other pipeline stages have none."""
    size = group[0].size
    if any(shard.size != size for shard in group):
        raise DataError(f"{group[0].source} and {group[-1].source} differ in `cp_size`; give the dump of one run")
    if size is None:
        return [next((shard for shard in group if shard.data.get("log_probs") is not None), group[0])]
    by_rank = {shard.rank: shard for shard in group}
    missing = [rank for rank in range(size) if rank not in by_rank]
    if missing or len(by_rank) != len(group):
        what = f"ranks {missing} of {size} are missing" if missing else "one is there twice"
        raise DataError(f"{group[0].source}: of its context-parallel slices {what}; give the files of all ranks")
    return [by_rank[rank] for rank in range(size)]


def _tokens(shard: Shard) -> list[Tensor]:
    values = _column(shard, "tokens")
    if values is None:
        raise DataError(f"{shard.source}: `tokens` is missing; write the dump anew")
    return [whole(value, f"{shard.source} sample {place}: `tokens`") for place, value in enumerate(values)]


def _column(shard: Shard, name: str) -> list[Any] | None:
    """A column of a shard, with its tensors; None where it has none."""
    value = shard.data.get(name)
    if value is None:
        return None
    read = shard.tensors.tensor(value, f"`{name}`")
    if isinstance(read, Tensor):
        read = list(read) if read.ndim else [read]
    if not isinstance(read, list):
        raise DataError(f"{shard.source}: `{name}` must be a list; got {what(read)}")
    return [shard.tensors.tensor(each, f"`{name}`") for each in read]


def _joined(group: list[Shard]) -> Iterator[Response]:
    """The responses of a context-parallel group, their numbers put together."""
    first = group[0]
    tokens = _tokens(first)
    lengths, masks = _column(first, "response_lengths"), _column(first, "loss_masks")
    ids = {key: _column(first, name) for name, key in IDS.items()}
    slices = [{name: _column(shard, name) for name in SLICED} for shard in group]
    columns = [lengths, masks, *ids.values(), *(column for each in slices for column in each.values())]
    if lengths is None or any(column is not None and len(column) != len(tokens) for column in columns):
        raise DataError(f"{first.source}: the columns of `rollout_data` must have an entry a sequence, {len(tokens)}")
    longest, rewards = _column(first, "max_seq_lens"), _column(first, "rewards")
    for place, sequence in enumerate(tokens):
        source = f"{first.source} sample {place}"
        length = counted(lengths[place], len(sequence), f"{source}: `response_lengths`")
        padded = int(longest[place]) if first.padded and longest is not None and place < len(longest) else None
        values = {
            name: partial(_whole, group, [each[name] for each in slices], place, len(sequence), length, padded, name)
            for name in SLICED
            if slices[0][name] is not None
        }
        own: dict[str, Any] = {key: _id(column[place]) for key, column in ids.items() if column is not None}
        if rewards is not None and place < len(rewards):
            own["rewards"] = rewards[place]
        mask = None if masks is None else masked(masks[place], len(sequence), length, f"{source}: `loss_masks`")
        yield Response(source=source, tokens=sequence, length=length, mask=mask, values=values, own=own)


def _whole(
    group: Sequence[Shard],
    columns: Sequence[list[Any] | None],
    place: int,
    total: int,
    response: int,
    padded: int | None,
    name: str,
) -> Tensor:
    """A column of one response out of the slices of every rank, float64 `[R]`."""
    size = group[0].size or 1
    if size > 1 and group[0].padded and padded is None:
        raise DataError(f"{group[0].source}: `max_seq_lens` is missing, by which bshd sequences are cut")
    out = torch.full((response,), torch.nan, dtype=torch.float64)
    for rank, (shard, column) in enumerate(zip(group, columns, strict=True)):
        source = f"{shard.source} sample {place}: `{name}`"
        if column is None:
            raise DataError(f"{source} is missing, and other ranks have it; give the files of one run")
        read = numbers(column[place], source)
        parts = pieces(total, response, rank, size, padded) if size > 1 else (slice(0, response), slice(0, 0))
        sizes = [part.stop - part.start for part in parts]
        if len(read) != sum(sizes):
            raise DataError(f"{source} has {len(read)} entries, and {sum(sizes)} of {response} are of {_rank(shard)}")
        out[parts[0]], out[parts[1]] = read[: sizes[0]], read[sizes[0] :]
    return out


def _rank(shard: Shard) -> str:
    if shard.size is None:
        return "this file, which says no `cp_rank`: slices can be joined only where it is said"
    return f"context-parallel rank {shard.rank} of {shard.size}"


def _id(value: Any) -> Any:
    return int(value) if isinstance(value, Tensor) and value.numel() == 1 else value


def _call(path: Path) -> tuple[int, int, str]:
    found = CALL.search(path.stem)
    return (int(found[2]), int(found[1]), str(path)) if found else (0, 0, str(path))


def _losses(path: Path) -> Iterator[Sample]:
    """What a microbatch of the policy loss says of its responses; it holds no tokens and no rollout."""
    loaded = torch_files.load(path)
    top = mapping(loaded.value, str(path))
    call = top.get("call")
    for place, value in enumerate(listed(top, "samples", str(path))):
        source = f"{path} sample {place}"
        own = mapping(value, source)
        total = own.get("total_length")
        if type(total) is not int or not 0 < total <= LONGEST:
            raise DataError(f"{source}: `total_length` must be 1 to {LONGEST:,}; got {said(total)}")
        length = counted(own.get("response_length"), total, f"{source}: `response_length`")
        held = {name: loaded.tensor(own[name], f"`{name}`") for name in LOSS if own.get(name) is not None}
        values = {name: partial(lambda value: value, value) for name, value in held.items()}
        if any(isinstance(each, Tensor) and len(each) != length for each in held.values()):
            raise DataError(
                f"{source}: it holds a slice of a response of {length} tokens, and the file does not say of which "
                "context-parallel rank; give the files of train_data"
            )
        mask = masked(held.get("local_loss_mask", [1] * length), total, length, f"{source}: `local_loss_mask`")
        response = Response(
            source=source, tokens=torch.zeros(total, dtype=torch.int64), length=length, mask=mask, values=values, own={}
        )
        now = response.column("train_log_probs", mask)
        yield Sample(
            source=source,
            step=call if type(call) is int else 0,
            tokens=response.tokens,
            mask=mask,
            logp_mu=response.column("rollout_log_probs", mask),
            logp_old=response.column("old_log_probs", mask),
            advantage=response.column("advantages", mask),
            columns={} if now is None else {"train_log_probs": now},
            notes={"tokens that the dump does not hold": total},
        )


def _recognise(path: Path) -> bool:
    try:
        found = kind(path)
        return found in ("shard", "loss") or (found == "rollout" and has_shards(path))
    except OSError:
        return False


MILES = Format(
    name="miles",
    title="miles's rollout files and its train files of every rank, also those of older slime",
    recognise=_recognise,
    read=read,
    conventions=(
        "numbers of a response are the last ones of its tokens; entry r is of token P + r, given those before it",
        "a rank of context parallelism of size C holds chunks c and 2C - 1 - c of 2C; the slices are put together",
        "routes have a row for every token but the last, of all layers, as the engine gave them",
        "policy_loss_debug is read only where there are no other files; it holds no tokens, and its step is its call",
    ),
)
