"""Dumps of slime: a rollout file and a train file of each step, joined response by response.

`--save-debug-rollout-data` writes what the engine sampled, `--save-debug-train-data` what the trainer made of it;
`--dump-details` writes both. Either alone is read too: without the train file there is no `logp_old`, without the
rollout file there are no routes, as the trainer drops them once they are replayed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from . import torch_files
from .format import Format, Options
from .layout import Notes, on_tokens, one_version, route_rows, whole
from .sample import Sample
from .torch_files import Loaded, head, mapping
from .words import said

ID = re.compile(rb"\x0a\0\0\0rollout_id(?:q.|r....)?(?:K(.)|M(..)|J(....))", re.DOTALL)
EVALUATION = re.compile(r"(^|_)eval_\d+$")  # the stem of a file of rollouts that nothing is trained on
KEYS = (b"format_version", b"rollout_id", b"rollout_data", b"samples", b"train_log_probs")
TRAIN_VERSION = 2
COLUMNS = ("ref_log_probs", "teacher_log_probs", "values", "returns", "kl")


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response in a rollout or a train file, under names that both share.

    Args:
        source: the file and the place in it.
        tokens: int64 `[L]`.
        length: R, of the response.
        mask: bool `[L]`, or None where the file has no mask.
        values: what the file holds for every token of the response, `[R]` each, by its name there.
        own: everything that the file says of the response.
    """

    source: str
    tokens: Tensor
    length: int
    mask: Tensor | None
    values: Mapping[str, Any]
    own: Mapping[str, Any] = field(repr=False)

    def column(self, name: str, mask: Tensor) -> Tensor | None:
        """One of the values on the axis of the tokens, 0 off the mask."""
        value = self.values.get(name)
        return None if value is None else on_tokens(value, mask, f"{self.source}: `{name}`", self.length)


def read(paths: Sequence[Path], options: Options) -> Iterator[Sample]:
    """The samples of files, in the order of their rollouts; see `Format.read`."""
    for step, files in by_step(paths).items():
        rollouts = [path for path in files if kind(path) == "rollout"]
        trained = [path for path in files if kind(path) == "train"]
        only(rollouts, step)
        only(trained, step)
        mine = rollout_file(rollouts[0]) if rollouts else None
        yield from join(step, mine, train_file(trained[0]) if trained else None, options)


def kind(path: Path) -> str | None:
    """Which file of slime or miles it is: `rollout`, `train`, `shard`, `loss`; None for another file."""
    first = head(path)
    keys = {name for name in KEYS if len(name).to_bytes(4, "little") + name in first}  # as a pickle holds a text
    if {b"format_version", b"rollout_id"} <= keys:
        return "train"
    if {b"rollout_data", b"rollout_id"} <= keys:
        return "shard"
    if {b"samples", b"train_log_probs"} <= keys:
        return "loss"
    return "rollout" if {b"samples", b"rollout_id"} <= keys and not EVALUATION.search(path.stem) else None


def by_step(paths: Sequence[Path]) -> dict[int, list[Path]]:
    """Files by the id of their rollout, in its order, which stands at the start of their pickles."""
    found: dict[int, list[Path]] = {}
    for path in paths:
        match = ID.search(head(path))
        if match is None:
            raise DataError(f"{path}: it says no `rollout_id` at its start; is it a dump of another program?")
        digits = next(group for group in match.groups() if group is not None)
        step = struct.unpack({1: "<B", 2: "<H", 4: "<i"}[len(digits)], digits)[0]
        found.setdefault(step, []).append(path)
    return dict(sorted(found.items()))


def only(paths: Sequence[Path], step: int) -> None:
    """Refuse two files of one rollout."""
    if len(paths) > 1:
        raise DataError(f"{paths[0]} and {paths[1]} are both of rollout {step}; give the dump of one run")


def rollout_file(path: Path) -> list[Response]:
    """The responses of a rollout file."""
    loaded = torch_files.load(path)
    samples = listed(mapping(loaded.value, str(path)), "samples", str(path))
    return [_rollout(loaded, sample, f"{path} sample {place}") for place, sample in enumerate(samples)]


def train_file(path: Path) -> list[Response]:
    """The responses of a train file."""
    loaded = torch_files.load(path)
    top = mapping(loaded.value, str(path))
    if top.get("format_version") != TRAIN_VERSION:
        raise DataError(f"{path}: `format_version` must be {TRAIN_VERSION}; got {said(top.get('format_version'))}")
    samples = listed(top, "samples", str(path))
    return [trained(loaded, sample, f"{path} sample {place}") for place, sample in enumerate(samples)]


def listed(top: Mapping[str, Any], name: str, source: str) -> list[Any]:
    """A list of a dump."""
    value = top.get(name)
    if not isinstance(value, list):
        raise DataError(f"{source}: `{name}` must be a list; got {type(value).__name__}")
    return value


def _rollout(loaded: Loaded, sample: Any, source: str) -> Response:
    own = mapping(sample, source)
    tokens = whole(loaded.tensor(own.get("tokens"), "`tokens`"), f"{source}: `tokens`")
    length = counted(own.get("response_length"), len(tokens), f"{source}: `response_length`")
    names = ("rollout_log_probs", "teacher_log_probs")
    values = {name: loaded.tensor(own[name], f"`{name}`") for name in names if own.get(name) is not None}
    kept = {name: loaded.tensor(own[name], f"`{name}`") for name in RAGGED if own.get(name) is not None}
    mask = own.get("loss_mask")
    return Response(
        source=source,
        tokens=tokens,
        length=length,
        mask=None if mask is None else masked(loaded.tensor(mask), len(tokens), length, source),
        values=values,
        own={**own, **kept},
    )


def trained(loaded: Loaded, sample: Any, source: str) -> Response:
    """A response of a train file."""
    own = mapping(sample, source)
    tokens = whole(loaded.tensor(own.get("tokens"), "`tokens`"), f"{source}: `tokens`")
    length = counted(own.get("response_lengths"), len(tokens), f"{source}: `response_lengths`")
    names = ("rollout_log_probs", "log_probs", "advantages", "entropy", *COLUMNS)
    values = {name: loaded.tensor(own[name], f"`{name}`") for name in names if own.get(name) is not None}
    mask = own.get("loss_masks")
    return Response(
        source=source,
        tokens=tokens,
        length=length,
        mask=None if mask is None else masked(loaded.tensor(mask), len(tokens), length, source),
        values=values,
        own=own,
    )


RAGGED = ("rollout_routed_experts", "rollout_top_p_token_offsets")


def masked(value: Any, length: int, response: int, source: str) -> Tensor:
    """A mask of a response on the axis of the tokens, bool `[L]`."""
    everywhere = torch.ones(length, dtype=torch.bool)
    return on_tokens(value, everywhere, f"{source}: `loss_mask`", response) != 0


def counted(value: Any, length: int, source: str) -> int:
    """The length of a response, which its tokens must be able to hold."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = int(value)
    if type(value) is not int or not 0 <= value <= length:
        raise DataError(f"{source} must be 0 to {length}, the tokens of the sample; got {said(value)}")
    return value


def join(
    step: int, rollouts: list[Response] | None, trained: list[Response] | None, options: Options
) -> Iterator[Sample]:
    """The samples of a step out of either file, or of both."""
    if trained is None:
        for response in rollouts or []:
            yield sample(step, response, None, options, {})
        return
    partners = _partners(rollouts or [], trained) if rollouts is not None else [None] * len(trained)
    left = len(rollouts or []) - len({id(each) for each in partners if each is not None})
    for place, (mine, theirs) in enumerate(zip(partners, trained, strict=True)):
        notes = {"rollout samples without train data": left} if place == 0 and left > 0 else {}
        yield sample(step, mine, theirs, options, notes)


def _partners(rollouts: list[Response], trained: list[Response]) -> list[Response | None]:
    """The rollout of every trained response, by its place there, else by its index, else by its tokens."""
    by_index = {each.own["index"]: each for each in rollouts if type(each.own.get("index")) is int}
    by_tokens: dict[bytes, list[Response]] = {}
    for each in reversed(rollouts):
        by_tokens.setdefault(each.tokens.numpy().tobytes(), []).append(each)
    return [_partner(each, rollouts, by_index, by_tokens) for each in trained]


def _partner(
    trained: Response,
    rollouts: list[Response],
    by_index: Mapping[int, Response],
    by_tokens: Mapping[bytes, list[Response]],
) -> Response:
    place, index = trained.own.get("rollout_position"), trained.own.get("sample_index")
    if type(place) is int:
        found = rollouts[place] if 0 <= place < len(rollouts) else None
        what = f"`rollout_position` {place}"
    elif type(index) is int and by_index:
        found, what = by_index.get(index), f"`sample_index` {index}"
    else:
        same = by_tokens.get(trained.tokens.numpy().tobytes(), [])
        found, what = (same.pop() if len(same) > 1 else same[0]) if same else None, "its tokens"
    if found is None or not torch.equal(found.tokens, trained.tokens):
        there = "holds no such sample" if found is None else f"has other tokens in {found.source}"
        raise DataError(f"{trained.source}: the rollout file {there}, by {what}; give the files of one run")
    return found


def sample(step: int, mine: Response | None, theirs: Response | None, options: Options, notes: Notes) -> Sample:
    """One response as a sample, out of its rollout, of what was trained, or of both."""
    first = theirs or mine
    assert first is not None
    length = len(first.tokens)
    mask = _mask(mine, theirs, notes)

    def column(name: str, *places: Response | None) -> Tensor | None:
        read = (place.column(name, mask) for place in places if place is not None)
        return next((value for value in read if value is not None), None)

    own = {**(theirs.own if theirs else {}), **(mine.own if mine else {})}
    logp_mu = column("rollout_log_probs", mine, theirs)
    _compare(logp_mu, column("rollout_log_probs", theirs), notes)
    rows, versions, extra = own.get("rollout_routed_experts"), own.get("weight_versions"), {}
    for name in COLUMNS:
        value = column(name, theirs, mine)
        if value is not None:
            extra[name] = value
    if mine is not None and (offsets := own.get("rollout_top_p_token_offsets")) is not None:
        extra["rollout_top_p_tokens"] = _kept(offsets, mine, mask)
    source = first.source if mine is None else mine.source
    return Sample(
        source=source,
        step=step,
        tokens=first.tokens,
        mask=mask,
        logp_mu=logp_mu,
        logp_old=column("log_probs", theirs),
        entropy=column("entropy", theirs),
        advantage=column("advantages", theirs),
        version=one_version(versions, length, notes) if isinstance(versions, list) and versions else None,
        routes=None
        if rows is None
        else route_rows(rows, length, options, f"{source}: `rollout_routed_experts`", notes),
        reward=_reward(mine.own.get("reward") if mine else own.get("rewards"), notes),
        group=own["group_index"] if type(own.get("group_index")) is int else None,
        columns=extra,
        notes=notes,
    )


def _mask(mine: Response | None, theirs: Response | None, notes: Notes) -> Tensor:
    """That of the update where it is known, else that of the rollout, else the whole response."""
    for response in (theirs, mine):
        if response is not None and response.mask is not None:
            return response.mask
    first = theirs or mine
    assert first is not None
    notes["responses without a mask, taken whole"] = 1
    return torch.arange(len(first.tokens)) >= len(first.tokens) - first.length


def _compare(mine: Tensor | None, theirs: Tensor | None, notes: Notes) -> None:
    """Count where both files hold the log-prob of the engine and differ by more than the rounding to the trainer's."""
    if mine is None or theirs is None:
        return
    apart = ~torch.isclose(mine, theirs, rtol=2**-8, atol=1e-6, equal_nan=True)  # of bfloat16, the coarsest in use
    if count := int(apart.sum()):
        notes["rollout_log_probs that differ between the rollout file and the train file"] = count


def _kept(offsets: Any, mine: Response, mask: Tensor) -> Tensor:
    """How many tokens top-p left of the vocabulary at every token."""
    source = f"{mine.source}: `rollout_top_p_token_offsets`"
    places = whole(offsets, source)
    if len(places) != mine.length + 1:
        raise DataError(f"{source} must have one entry more than the response, {mine.length + 1}; got {len(places)}")
    return on_tokens(places.diff(), mask, source)


def _reward(value: Any, notes: Notes) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, int | float):
        return float(value)
    if value is not None:
        notes["rewards that are no single number"] = 1
    return None


def has_shards(path: Path) -> bool:
    """Whether a rollout file lies beside train files that are a file a rank: those of miles."""
    return any((path.parent.parent / "train_data").glob(f"{path.stem}_*.pt"))


def _recognise(path: Path) -> bool:
    try:
        found = kind(path)
        return found == "train" or (found == "rollout" and not has_shards(path))
    except OSError:
        return False


SLIME = Format(
    name="slime",
    title="slime's rollout and train files of torch.save, or a rollout file of miles alone",
    recognise=_recognise,
    read=read,
    conventions=(
        "numbers of a response are the last ones of its tokens; entry r is of token P + r, given those before it",
        "routes have a row for every token but the last, of all layers, as the engine gave them",
        "a rollout and a train file are joined by rollout_position, else by index, else by the tokens",
        "weight_versions has one entry a request; where they differ no token's version is known",
    ),
)
