"""Views: the responses of a dump that are worth reading token by token, chosen while its chunks pass by.

Shapes: B samples, L positions, M MoE layers, K experts a token. What is held does not grow with the dump: so many
stretches for every reason, each of at most `WINDOW` tokens; at 48 layers of 8 experts in both engines 1 MB each.
D = log π_old - log μ on the usable tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import zip_longest

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk
from firstorder.core.formats.sample import Sample
from firstorder.core.routing import flips

from .report import View

WINDOW = 600  # tokens of a view: some screens of a page
SHOWN = 24  # views: a list that is read to its end
KEPT = 10  # for each reason; reasons share responses, and those that another names first leave room
DRAWN = 31  # responses drawn at random, whose median is called typical
TYPICAL = "typical"
REASONS = ("unusable tokens", "largest |sum D|", "largest |D|", "most flips")

Scores = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of a response that may be shown: `n` positions from `first` on, rows of routes those that made them.

    Args:
        score: by which it is kept, the larger the better.
        size: mean |D| of the whole response, nats.
        sample: its columns, cut.
        first: the position of the first token.
    """

    score: float
    size: float
    sample: Sample
    first: int

    @property
    def order(self) -> tuple[float, int, str]:
        """The best first; equal ones in the order of steps and names, whatever order they were read in."""
        return -self.score, self.sample.step, self.sample.source


@dataclass(frozen=True, kw_only=True)
class Views:
    """What has been chosen so far, by reason; of two parts of a dump, `merged`."""

    held: dict[str, tuple[Stretch, ...]] = field(default_factory=dict)

    def add(self, chunk: Chunk) -> Views:
        """With the responses of another chunk."""
        sizes, scores = _sizes(chunk), _scores(chunk)
        scores[TYPICAL] = _drawn(chunk), scores["largest |D|"][1] if "largest |D|" in scores else chunk.lengths // 2
        found = {why: self._better(chunk, why, *pair, sizes) for why, pair in scores.items()}
        return self.merged(Views(held=found))

    def merged(self, other: Views) -> Views:
        """The best of both."""
        names = self.held.keys() | other.held.keys()
        both = {name: (*self.held.get(name, ()), *other.held.get(name, ())) for name in names}
        return Views(held={name: _best(found, _kept(name)) for name, found in both.items()})

    def shown(self, texts: Callable[[int], str] | None = None) -> tuple[View, ...]:
        """The views of a report: the worst by each reason in turn, and a typical one at the end.

        Args:
            texts: the text of a token by its id, where a tokenizer is at hand.
        """
        turns = zip_longest(*([(why, s) for s in self.held.get(why, ())] for why in REASONS))
        ranked = [pair for turn in turns for pair in turn if pair is not None]
        chosen: dict[str, tuple[str, Stretch]] = {}
        for why, stretch in ranked:
            chosen.setdefault(stretch.sample.source, (why, stretch))
        worst = list(chosen.values())[: SHOWN - 1]
        seen = {stretch.sample.source for _, stretch in worst}
        usual = [(TYPICAL, s) for s in _typical(self.held.get(TYPICAL, ())) if s.sample.source not in seen]
        return tuple(_view(why, stretch, texts) for why, stretch in worst + usual)

    def _better(self, chunk: Chunk, why: str, score: Tensor, place: Tensor, sizes: Tensor) -> tuple[Stretch, ...]:
        """The responses of a chunk that are among the best so far, cut."""
        held, most = self.held.get(why, ()), _kept(why)
        floor = held[-1].score if len(held) == most else 0.0
        values, samples = score.tolist(), chunk.samples
        there = [i for i, value in enumerate(values) if value > 0 and value >= floor]
        there = sorted(there, key=lambda i: (-values[i], samples[i].step, samples[i].source))[:most]
        return tuple(_cut(samples[i], int(place[i]), values[i], float(sizes[i])) for i in there)


def _scores(chunk: Chunk) -> Scores:
    """How much each response speaks for being shown, `[B]`, and the position to show, `[B]`, by reason."""
    bad = chunk.mask & ~chunk.usable
    scores: Scores = {"unusable tokens": (bad.sum(-1).double(), bad.int().argmax(-1))}
    if chunk.logp_mu is not None and chunk.logp_old is not None:
        apart = _apart(chunk)
        worst = apart.abs().max(-1)
        scores |= {
            "largest |sum D|": (apart.sum(-1).abs(), worst.indices),
            "largest |D|": (worst.values, worst.indices),
        }
    if (flipped := _flipped(chunk)) is not None:
        scores["most flips"] = flipped.sum(-1).double(), flipped.argmax(-1)
    return scores


def _apart(chunk: Chunk) -> Tensor:
    """D, `[B, L]`, 0 where a token is not usable."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    return torch.where(chunk.usable, chunk.logp_old - chunk.logp_mu, 0.0)


def _sizes(chunk: Chunk) -> Tensor:
    """Mean |D| of every response, `[B]`; 0 where a log-prob is not in the dump."""
    if chunk.logp_mu is None or chunk.logp_old is None:
        return torch.zeros(len(chunk.samples), dtype=torch.float64)
    return _apart(chunk).abs().sum(-1) / chunk.usable.sum(-1).clamp(min=1)


def _flipped(chunk: Chunk) -> Tensor | None:
    """MoE layers in which the engines send the row that made a token to other expert sets, `[B, L]`."""
    a, b = chunk.routes, chunk.routes_old
    if a is None or b is None or a.shape != b.shape:
        return None
    counts = torch.zeros_like(chunk.mask, dtype=torch.int64)
    made = chunk.mask[:, 1:]
    ours, theirs = a[:, :-1][made], b[:, :-1][made]  # [N, M, K]
    differ = (ours != theirs).any(-1) & (ours[..., 0] >= 0) & (theirs[..., 0] >= 0)  # a row is all ids or all -1
    differ[differ.clone()] = flips(ours[differ], theirs[differ])  # the same experts in another order are no flip
    counts[:, 1:][made] = differ.sum(-1)
    return counts


def _drawn(chunk: Chunk) -> Tensor:
    """A number in (0, 1) for every response, as good as random and the same in every order of reading, `[B]`.

    0 where no token is usable: nothing is typical about such a response.
    """
    digests = [blake2b(f"{s.step} {s.source}".encode(), digest_size=6).digest() for s in chunk.samples]
    drawn = torch.tensor([(int.from_bytes(d) + 0.5) / (1 << 48) for d in digests], dtype=torch.float64)
    return torch.where(chunk.usable.any(-1), drawn, 0.0)


def _typical(drawn: Sequence[Stretch]) -> list[Stretch]:
    """The one of median size, or none."""
    return sorted(drawn, key=lambda s: (s.size, s.order))[len(drawn) // 2 :][:1]


def _kept(why: str) -> int:
    return DRAWN if why == TYPICAL else KEPT


def _best(found: Sequence[Stretch], most: int) -> tuple[Stretch, ...]:
    return tuple(sorted(found, key=lambda stretch: stretch.order)[:most])


def _cut(sample: Sample, place: int, score: float, size: float) -> Stretch:
    """The stretch around a position, in memory of its own."""
    first = max(0, min(place - WINDOW // 2, len(sample.tokens) - WINDOW))
    last = min(first + WINDOW, len(sample.tokens))

    def column(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[first:last].clone()

    def rows(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        before = x[first - 1 : first] if first else torch.full_like(x[:1], -1)
        return torch.cat([before, x[first : last - 1]])

    part = Sample(
        source=sample.source,
        step=sample.step,
        tokens=sample.tokens[first:last].clone(),
        mask=sample.mask[first:last].clone(),
        logp_mu=column(sample.logp_mu),
        logp_old=column(sample.logp_old),
        routes=rows(sample.routes),
        routes_old=rows(sample.routes_old),
    )
    return Stretch(score=score, size=size, sample=part, first=first)


def _view(why: str, stretch: Stretch, texts: Callable[[int], str] | None) -> View:
    part = stretch.sample
    ids = tuple(part.tokens.tolist())
    mu, old = (None if x is None else tuple(x.tolist()) for x in (part.logp_mu, part.logp_old))
    return View(
        source=part.source,
        step=part.step,
        first=stretch.first,
        why=why,
        tokens=ids,
        mask=tuple(part.mask.tolist()),
        logp_mu=mu,
        logp_old=old,
        routes=_nested(part.routes),
        routes_old=_nested(part.routes_old),
        texts=None if texts is None else tuple(map(texts, ids)),
    )


def _nested(routes: Tensor | None) -> tuple[tuple[tuple[int, ...], ...], ...] | None:
    if routes is None:
        return None
    return tuple(tuple(map(tuple, token)) for token in routes.tolist())
