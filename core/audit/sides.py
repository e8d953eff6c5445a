"""The two sides of a pair from files: responses with the same tokens, and the log-probs that each side has for them.

A side is any dump that `core.formats` reads, or JSON lines of `token_ids` and `logprobs`, two lists of one length: null
where there is no log-prob, which is off the mask; `mask`, where it is there, is a list of 0 and 1.

Shapes: B responses, L positions, M MoE layers, K experts a token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from firstorder.core.errors import DataError
from firstorder.core.formats.fields import flags, floats, ints
from firstorder.core.formats.lines import Line, head, lines
from firstorder.core.formats.registry import open_dump
from firstorder.core.formats.sample import Sample

RESPONSES = 512  # that are compared: enough for every rule, and held at once
PLAIN = ("token_ids", "logprobs")


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Responses that both sides have.

    Args:
        tokens: int64 `[B, L]`, padded at the end.
        mask: bool `[B, L]`, sampled tokens by both.
        logp_mu, logp_pi: float64 `[B, L]` nats, of the first and the second side.
        entropy: float64 `[B, L]` nats, of the second side, None where it has none.
        routes, routes_pi: int16 `[B, L, M, K]`, None where a side has none.
        notes: what was read and left out, a sentence each.
    """

    tokens: Tensor
    mask: Tensor
    logp_mu: Tensor
    logp_pi: Tensor
    entropy: Tensor | None
    routes: Tensor | None
    routes_pi: Tensor | None
    notes: tuple[str, ...]


def matched(first: Path, second: Path) -> Matched:
    """The responses of two files that have the same tokens, `RESPONSES` at most.

    Args:
        first: of the rollout engine; where it holds log-probs of both engines, the rollout engine's are read.
        second: of the trainer, likewise.

    Raises:
        DataError: a file cannot be read or holds no log-probs, or the two share no response.
    """
    waiting: dict[bytes, list[Sample]] = defaultdict(list)
    known = 0
    for sample in _read(first):
        if known == RESPONSES:
            break
        waiting[_key(sample)].append(sample)
        known += 1
    pairs: list[tuple[Sample, Sample]] = []
    unmatched = 0
    for other in _read(second):
        if len(pairs) == known:
            break
        mine = waiting.get(_key(other))
        if mine:
            pairs.append((mine.pop(0), other))
        else:
            unmatched += 1
    if not pairs:
        raise DataError(
            f"{first} and {second} share no response: none of {known:,} has the tokens of one of {unmatched:,}; "
            "have both engines score the same tokens"
        )
    return _laid(pairs, (first, second), known - len(pairs))


def _laid(pairs: list[tuple[Sample, Sample]], paths: tuple[Path, Path], alone: int) -> Matched:
    mine, others = ([pair[side] for pair in pairs] for side in (0, 1))
    mu_name, pi_name = (
        _column(mine, ("logp_mu", "logp_old"), paths[0]),
        _column(others, ("logp_old", "logp_mu"), paths[1]),
    )
    notes = [
        f"{len(pairs):,} responses by {_whose(mu_name)} of {paths[0]} and {_whose(pi_name)} of {paths[1]}",
        *([f"{alone:,} responses of {paths[0]} are not in {paths[1]}"] if alone else []),
    ]
    mask = _padded([a.mask & b.mask for a, b in pairs])
    tokens, mu, pi = (
        _padded([getattr(each, name) for each in side])
        for side, name in ((mine, "tokens"), (mine, mu_name), (others, pi_name))
    )
    return Matched(
        tokens=tokens,
        mask=mask,
        logp_mu=mu,
        logp_pi=pi,
        entropy=_all(others, "entropy"),
        routes=_all(mine, "routes", -1),
        routes_pi=_all(others, "routes_old", -1),
        notes=tuple(notes),
    )


def _column(samples: list[Sample], names: tuple[str, str], path: Path) -> str:
    """The first of two columns that all samples have."""
    for name in names:
        if all(getattr(sample, name) is not None for sample in samples):
            return name
    raise DataError(f"{path} holds no log-probs of the responses; give a dump that does, or JSON lines of {PLAIN}")


def _whose(name: str) -> str:
    return "the rollout engine's log-probs" if name == "logp_mu" else "the trainer's log-probs"


def _all(samples: list[Sample], name: str, fill: float = 0.0) -> Tensor | None:
    columns = [getattr(sample, name) for sample in samples]
    shapes = {None if x is None else tuple(x.shape[1:]) for x in columns}
    return None if None in shapes or len(shapes) > 1 else _padded(columns, fill)


def _padded(columns: list[Tensor], fill: float = 0.0) -> Tensor:
    return pad_sequence(columns, batch_first=True, padding_value=fill)


def _key(sample: Sample) -> bytes:
    return sample.tokens.contiguous().numpy().tobytes()


def _read(path: Path) -> Iterator[Sample]:
    if path.is_file() and _is_plain(path):
        return (_plain(line) for line in lines(path))
    return open_dump([path]).samples()


def _is_plain(path: Path) -> bool:
    if not (head(path) or b"").lstrip().startswith(b"{"):
        return False
    first = next(lines(path), None)
    return first is not None and all(name in first.fields for name in PLAIN)


def _plain(line: Line) -> Sample:
    """A line of the plain form; raises as `matched`."""
    tokens = ints(line, "token_ids")
    logp = floats(line, "logprobs", len(tokens))
    mask = flags(line, "mask", len(tokens)) if "mask" in line.fields else logp.isfinite()
    mask[:1] = False  # no token precedes it
    return Sample(source=line.source, step=0, tokens=tokens, mask=mask, logp_mu=torch.where(mask, logp, 0.0))
