"""Dumps of slime: a rollout file and a train file of each step, joined response by response.

`--save-debug-rollout-data` writes what the engine sampled, `--save-debug-train-data` what the trainer made of it;
`--dump-details` writes both. Either alone is read too: without the train file there is no `logp_old`, without the
rollout file there are no routes, as the trainer drops them once they are replayed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from .format import Format, Options
from .layout import Notes, on_tokens, one_version, route_rows, whole
from .machine import Inert
from .names import ELSEWHERE
from .rollouts import COLUMNS, ENGINE, Response, rollout_file, train_file
from .sample import Sample
from .torch_files import head

ID = re.compile(rb"\x0a\0\0\0rollout_id(?:q.|r....)?(?:K(.)|M(..)|J(....))", re.DOTALL)
EVALUATION = re.compile(r"(^|_)eval_\d+$")  # the stem of a file of rollouts that nothing is trained on
KEYS = (b"format_version", b"rollout_id", b"rollout_data", b"samples", b"train_log_probs")


def read(paths: Sequence[Path], options: Options) -> Iterator[Sample]:
    """The samples of files, in the order of their rollouts; see `Format.read`."""
    for step, files in by_step(paths).items():
        rollouts = [path for path in files if kind(path) == "rollout"]
        trained = [path for path in files if kind(path) == "train"]
        only(rollouts, step)
        only(trained, step)
        mine = rollout_file(rollouts[0]) if rollouts else None
        yield from join(step, mine, train_file(trained[0]) if trained else None)


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


def join(step: int, rollouts: list[Response] | None, trained: list[Response] | None) -> Iterator[Sample]:
    """The samples of a step out of either file, or of both."""
    if trained is None:
        for response in rollouts or []:
            yield sample(step, response, None, {})
        return
    partners = _partners(rollouts or [], trained) if rollouts is not None else [None] * len(trained)
    left = len(rollouts or []) - len({id(each) for each in partners if each is not None})
    for place, (mine, theirs) in enumerate(zip(partners, trained, strict=True)):
        notes = {"rollout samples without train data": left} if place == 0 and left > 0 else {}
        yield sample(step, mine, theirs, notes)


def _partners(rollouts: list[Response], trained: list[Response]) -> list[Response | None]:
    """The rollout of every trained response, by its place there, else by its index, else by its tokens."""
    by_index = {each.own["index"]: each for each in rollouts if type(each.own.get("index")) is int}
    by_tokens: dict[bytes, list[Response]] = {}
    if any(_key(each, by_index) is None for each in trained):
        for each in reversed(rollouts):
            by_tokens.setdefault(each.tokens.numpy().tobytes(), []).append(each)
    return [_partner(each, rollouts, by_index, by_tokens) for each in trained]


def _key(trained: Response, by_index: Mapping[int, Response]) -> str | None:
    """By which number a trained response is looked up; None where its tokens must do."""
    if type(trained.own.get("rollout_position")) is int:
        return "rollout_position"
    return "sample_index" if by_index and type(trained.own.get("sample_index")) is int else None


def _partner(
    trained: Response,
    rollouts: list[Response],
    by_index: Mapping[int, Response],
    by_tokens: Mapping[bytes, list[Response]],
) -> Response:
    key = _key(trained, by_index)
    if key is None:
        same = by_tokens.get(trained.tokens.numpy().tobytes(), [])
        found = (same.pop() if len(same) > 1 else same[0]) if same else None
    else:
        place = trained.own[key]
        there = place < len(rollouts) if key == "rollout_position" else place in by_index
        found = (rollouts[place] if key == "rollout_position" else by_index[place]) if there and place >= 0 else None
    if found is None or not torch.equal(found.tokens, trained.tokens):
        what = "its tokens" if key is None else f"`{key}` {trained.own[key]}"
        there_is = "holds no such sample" if found is None else f"has other tokens in {found.source}"
        raise DataError(f"{trained.source}: the rollout file {there_is}, by {what}; give the files of one run")
    return found


def sample(step: int, mine: Response | None, theirs: Response | None, notes: Notes) -> Sample:
    """One response as a sample, out of its rollout, of what was trained, or of both."""
    first = theirs or mine
    assert first is not None
    length = len(first.tokens)
    mask = _mask(mine, theirs, notes)

    def column(name: str, *places: Response | None) -> Tensor | None:
        read = (place.column(name, mask) for place in places if place is not None)
        return next((value for value in read if value is not None), None)

    own = {**(theirs.own if theirs else {}), **(mine.own if mine else {})}
    rewards = [response.own.get(name) for response, name in ((mine, "reward"), (theirs, "raw_reward")) if response]
    logp_mu = column("rollout_log_probs", mine, theirs)
    _compare(logp_mu, column("rollout_log_probs", theirs), notes)
    source, versions = (first if mine is None else mine).source, own.get("weight_versions")
    rows, offsets = (None if mine is None else _kept_here(mine, name, notes) for name in ENGINE)
    extra = {name: value for name in COLUMNS if (value := column(name, theirs, mine)) is not None}
    if mine is not None and offsets is not None:
        extra["rollout_top_p_tokens"] = _top_p(offsets, mine, mask)
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
        routes=None if rows is None else route_rows(rows, length, f"{source}: `rollout_routed_experts`", notes),
        reward=_reward([*rewards, *([own.get("rewards")] if mine is None else [])], notes),
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


def _kept_here(mine: Response, name: str, notes: Notes) -> Any:
    """What the engine gave, where the file holds it and does not only say where it is."""
    value = mine.value(name)
    if isinstance(value, Inert) and value.name in ELSEWHERE:
        notes[f"`{name}` kept in another file, which is not read"] = 1
        return None
    return value


def _top_p(offsets: Any, mine: Response, mask: Tensor) -> Tensor:
    """How many tokens top-p left of the vocabulary at every token."""
    source = f"{mine.source}: `rollout_top_p_token_offsets`"
    places = whole(offsets, source)
    if len(places) != mine.length + 1:
        raise DataError(f"{source} must have one entry more than the response, {mine.length + 1}; got {len(places)}")
    return on_tokens(places.diff(), mask, source)


def _reward(values: Sequence[Any], notes: Notes) -> float | None:
    """The first that is a number: that of the rollout, else the raw one, else the one that was trained with."""
    for value in values:
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(number, float) or (type(number) is int and abs(number) < 2**53):
            return float(number)
    if any(value is not None for value in values):
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
