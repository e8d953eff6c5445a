"""prime-rl's token exports: a line a response, a file a step and rank.

`RUN/token_exports/step_N/rank_R.jsonl`, and a file `STABLE` beside it once a step is whole. A line holds numbers about
itself, and lists of one length: position i of each belongs to token i.

| field | of `Sample` |
|---|---|
| `export_step`, else `step` | `step` |
| `token_ids`, `loss_mask` | `tokens`, `mask` |
| `inference_logprobs`, `trainer_logprobs` | `logp_mu`, `logp_old` |
| `advantages`, `entropy` | `advantage`, `entropy` |
| `rewards`, the same at all sampled tokens | `reward` |
| every other list of numbers or truth values | `columns`, under its own name |

The trainer's log-prob at position 0 is log(1/V), since no token precedes it; null stands for what is not finite, and
for a whole column that was not computed. Source: PrimeIntellect-ai/prime-rl, `src/prime_rl/trainer/rl/token_export.py`.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from .fields import column, flags, floats, integer, ints
from .format import Format, Options
from .lines import Line, head, lines
from .sample import Sample

VERSION = 1
STABLE = "STABLE"
LOGPROBS = ("inference_logprobs", "trainer_logprobs")
OWN = {"logp_mu": "inference_logprobs", "logp_old": "trainer_logprobs", "entropy": "entropy", "advantage": "advantages"}
TAKEN = {*OWN.values(), "token_ids", "loss_mask"}
STEP, RANK = re.compile(r"step_(\d+)"), re.compile(r"rank_(\d+)\.jsonl")
MARKS = (b'"schema_version"', b'"export_sequence_idx"')


def read(paths: Sequence[Path], options: Options) -> Iterator[Sample]:
    """The samples of files, by step and rank; see `Format.read`."""
    ordered = sorted(paths, key=_order)
    together = [path for path in ordered if not STEP.fullmatch(path.parent.name)]  # a file of all steps a rank
    yield from heapq.merge(*map(_samples, together), key=lambda sample: sample.step)
    for path in ordered:
        if STEP.fullmatch(path.parent.name):
            yield from _samples(path, (path.parent / STABLE).exists())


def _samples(path: Path, whole: bool = True) -> Iterator[Sample]:
    for number, line in enumerate(lines(path)):
        yield _sample(line, {} if whole or number else {"files of steps that are not marked STABLE": 1})


def _sample(line: Line, notes: dict[str, int]) -> Sample:
    version = integer(line, "schema_version")
    if version != VERSION:
        raise line.wrong(f"is of schema version {version}, and this program reads {VERSION}", "update firstorder")
    tokens = ints(line, "token_ids")
    length = len(tokens)
    own = {name: floats(line, theirs, length) for name, theirs in OWN.items()}
    held = {name: values for name, values in own.items() if not values.isnan().all()}
    others, left_out = _others(line, length)
    mask = flags(line, "loss_mask", length)
    notes |= {f"null {theirs}": int(own[name].isnan().sum()) for name, theirs in OWN.items() if theirs in LOGPROBS}
    notes |= {"lists that hold no numbers": left_out}
    reward = _reward(others.get("rewards"), mask)
    return Sample(
        source=line.source,
        step=integer(line, "export_step" if "export_step" in line.fields else "step"),
        tokens=tokens,
        mask=mask,
        logp_mu=held.get("logp_mu"),
        logp_old=held.get("logp_old"),
        entropy=held.get("entropy"),
        advantage=held.get("advantage"),
        reward=reward,
        columns={name: values for name, values in others.items() if reward is None or name != "rewards"},
        notes={name: count for name, count in notes.items() if count},
    )


def _others(line: Line, length: int) -> tuple[dict[str, Tensor], int]:
    """Columns that have no place of their own, without those that are null throughout; and how many hold no numbers."""
    found, left_out = {}, 0
    for name, values in line.fields.items():
        if name in TAKEN or not isinstance(values, list):
            continue
        numbers = column(line, name, length) if name.isprintable() else None
        if numbers is None:
            left_out += 1
        elif not numbers.isnan().all():
            found[name] = numbers
    return found, left_out


def _reward(rewards: Tensor | None, mask: Tensor) -> float | None:
    """The one reward of a response, where all its sampled tokens have the same."""
    if rewards is None or not mask.any() or not (rewards[mask] == rewards[mask][0]).all():
        return None
    return float(rewards[mask][0])


def _order(path: Path) -> tuple[int, int, str]:
    step, rank = STEP.fullmatch(path.parent.name), RANK.fullmatch(path.name)
    return int(step[1]) if step else 0, int(rank[1]) if rank else 0, str(path)


def _recognise(path: Path) -> bool:
    if path.suffix != ".jsonl":
        return False
    start = head(path)
    if not start:  # a rank that had nothing to write
        return start is not None and bool(STEP.fullmatch(path.parent.name) and RANK.fullmatch(path.name))
    return start.startswith(b"{") and all(mark in start for mark in MARKS)


PRIME_RL = Format(
    name="prime-rl",
    title="prime-rl's token exports, JSON lines, a line a response",
    recognise=_recognise,
    read=read,
    conventions=(
        "position i of every list is token i, and its log-prob is that of token i given those before it",
        "the trainer's log-prob at position 0 is log(1/V), and no token precedes it",
        "null is a number that was not finite, and a column of nulls one that was not computed",
        "tokens that were not sampled have the inference log-prob 0",
    ),
)
