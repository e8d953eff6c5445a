"""The map from regimes to recipes that `firstorder study map` has measured, read without any engine: plain numbers.

A regime between cells is a mean of the cells around it, in the logarithms of KL, flips, length, N and G, and in the
entropy; a cell that no engines fit is left out of the mean. Beyond the map its edge is taken, and that is said.

Shapes: O options, S seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from firstorder.core.errors import DataError
from firstorder.core.runs.files import shipped_text

from .options import OPTIONS, Option

SHIPPED = Path(__file__).with_name("atlas.json")
UPDATES = (1, 2, 4, 8)
GROUPS, GROUP = (4, 16, 64), 16
BATCH = 64  # groups of a mini-batch: arXiv 2512.01374's
ERRORS = 1.0  # standard errors within which options are tied
WORTH = 0.01  # of a score, which a mini-batch larger by 2% gives as well; a smaller lead is none
Key = tuple[int, int, float, float, float]  # right, horizon, kl, flips, step
Weights = list[tuple[float, float]]  # of the values of an axis around a point


@dataclass(frozen=True, kw_only=True)
class Point:
    """A regime that is asked about: KL in nats a token, flips of (token, layer), N, T in tokens, G, entropy in nats a
    token, and KL(π_old ‖ π_θ) after one update in nats a token."""

    kl: float
    flips: float
    updates: int
    horizon: int
    group: int
    entropy: float
    step: float


AXES: Mapping[str, str] = {
    "kl": "KL, nats a token",
    "flips": "flips",
    "updates": "N",
    "horizon": "T, tokens",
    "group": "G",
    "entropy": "entropy, nats a token",
    "step": "step, nats a token",
}
LINEAR = ("entropy",)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What an option comes to: means over the N mini-batches of a rollout, and `scores` of each seed."""

    option: Option
    error: float
    cosine: float
    ess: float
    sequence_ess: float
    scores: Sequence[float]

    @property
    def score(self) -> float:
        """cos_B, the mean over seeds."""
        return fmean(self.scores)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The option chosen, those tied with the best, and all that were allowed, best first."""

    chosen: Numbers
    tied: Sequence[Numbers]
    ranked: Sequence[Numbers]


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """The map.

    Args:
        seeds: of the policies.
        options: names, in the order of the cells' numbers.
        cells: what was measured in each regime.
    """

    seeds: Sequence[int]
    options: Sequence[str]
    cells: Mapping[Key, Mapping[str, Any]]

    @cached_property
    def axes(self) -> dict[str, list[float]]:
        """The values along each axis."""
        found = {"horizon": 1, "kl": 2, "flips": 3, "step": 4}
        grid = {name: sorted({float(key[place]) for key in self.cells}) for name, place in found.items()}
        return grid | {"updates": [*map(float, UPDATES)], "group": [*map(float, GROUPS)], "entropy": [*self._entropies]}

    @cached_property
    def _entropies(self) -> dict[float, int]:
        """Mean entropy of the cells that have so many right tokens, ascending."""
        rights = sorted({key[0] for key in self.cells})
        return {fmean(c["entropy"] for key, c in self.cells.items() if key[0] == right): right for right in rights}

    def outside(self, point: Point) -> dict[str, float]:
        """The edge of the map beyond which a point lies, by axis."""
        beyond = {}
        for name, values in self.axes.items():
            x = float(getattr(point, name))
            low, high = (values[0], values[-1]) if name not in LINEAR else (values[0] * 0.9, values[-1] * 1.1)
            if not low <= x <= high:
                beyond[name] = values[0] if x < low else values[-1]
        return beyond

    def corners(self, point: Point) -> list[tuple[Key, float]]:
        """The cells around a point and their weights, which sum to 1; the nearest where there is none around it."""
        return self.around(point) or [(self.nearest(point), 1.0)]

    def around(self, point: Point) -> list[tuple[Key, float]]:
        """The cells around a point that exist, and their weights, which sum to 1; none where none does."""
        around = {name: between(self.axes[name], float(getattr(point, name)), name) for name in _IN_CELLS}
        found = []
        for corner in product(*(around[name] for name in _IN_CELLS)):
            h, t, k, f, s = (value for value, _ in corner)
            key = (self._entropies[h], int(t), k, f, s)
            if key in self.cells:
                found.append((key, math.prod(weight for _, weight in corner)))
        total = sum(weight for _, weight in found)
        return [(key, weight / total) for key, weight in found if weight]

    def nearest(self, point: Point) -> Key:
        """The cell nearest to a point."""
        return min(self.cells, key=lambda key: self.distance(point, key))

    def distance(self, point: Point, key: Key) -> float:
        """How far a cell is: the root of the squares of the logarithms of KL, flips, length and step, and of the
        difference of entropies."""
        right, horizon, kl, flips, step = key
        entropy = next(h for h, r in self._entropies.items() if r == right)
        pairs = ((point.kl, kl), (point.flips, flips), (point.horizon, horizon), (point.step, step))
        apart = [math.log(a / b) for a, b in pairs]
        return math.hypot(*apart, point.entropy - entropy)

    def numbers(self, point: Point, cells: Sequence[tuple[Key, float]] | None = None) -> dict[str, Numbers]:
        """What every option comes to at a point, by name."""
        cells = self.corners(point) if cells is None else cells
        steps = between(self.axes["updates"], float(point.updates), "updates")
        sizes = between(self.axes["group"], float(point.group), "group")
        parts = [
            (self.cells[key], UPDATES.index(int(n)), weight * share) for key, weight in cells for n, share in steps
        ]

        def mean(name: str, place: int) -> float:
            return sum(weight * float(c[name][n][place]) for c, n, weight in parts)

        found = {}
        for place, name in enumerate(self.options):
            seeds = [sum(w * c["score"][n][place][s] for c, n, w in parts) for s in range(len(self.seeds))]
            middle = fmean(seeds)
            shift = sum(w * ((middle if g == GROUP else mean(f"score_{int(g)}", place)) - middle) for g, w in sizes)
            found[name] = Numbers(
                option=OPTIONS[name],
                error=mean("error", place),
                cosine=mean("cosine", place),
                ess=mean("ess", place),
                sequence_ess=mean("sequence_ess", place),
                scores=[x + shift for x in seeds],
            )
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The table: a row for each cell and N, with what is chosen in it."""
        from .ruled import allowed

        rows = []
        for key, one in self.cells.items():
            entropy = next(h for h, r in self._entropies.items() if r == key[0])
            for n in UPDATES:
                point = Point(
                    kl=key[2], flips=key[3], updates=n, horizon=key[1], group=GROUP, entropy=entropy, step=key[4]
                )
                found = self.numbers(point, [(key, 1.0)])
                chosen = choose(allowed(found, point)).chosen
                alone = choose(found).chosen
                rows.append(
                    {
                        "kl": one["kl_found"],
                        "flips": one["flips_found"],
                        "horizon": key[1],
                        "updates": n,
                        "entropy": one["entropy"],
                        "right": key[0],
                        "step": key[4],
                        "kl_replayed": one["kl_replayed"],
                        "advice": chosen.option.name,
                        "gradient_error_natural": chosen.error,
                        "cosine_natural": chosen.cosine,
                        "ess": chosen.ess,
                        "score": chosen.score,
                        "map_alone": alone.option.name,
                    }
                )
        return rows


_IN_CELLS = ("entropy", "horizon", "kl", "flips", "step")


def between(values: Sequence[float], x: float, axis: str) -> Weights:
    """The values of an axis around x with their weights, which sum to 1; at its edge one alone."""
    scale: Callable[[float], float] = (lambda v: v) if axis in LINEAR else math.log
    if x <= values[0] or len(values) == 1:
        return [(values[0], 1.0)]
    if x >= values[-1]:
        return [(values[-1], 1.0)]
    place = max(i for i, v in enumerate(values) if v <= x)
    low, high = values[place], values[place + 1]
    share = (scale(x) - scale(low)) / (scale(high) - scale(low))
    return [(low, 1 - share), (high, share)] if share else [(low, 1.0)]


def choose(numbers: Mapping[str, Numbers]) -> Choice:
    """The simplest of the options that are tied with the one of the largest score."""
    ranked = sorted(numbers.values(), key=lambda each: -each.score)
    best = ranked[0]
    tied = [
        each for each in ranked if best.score - each.score <= max(ERRORS * apart(best, each), WORTH * abs(best.score))
    ]
    return Choice(chosen=min(tied, key=lambda each: each.option.parts), tied=tied, ranked=ranked)


def apart(a: Numbers, b: Numbers) -> float:
    """Standard error over seeds of the difference of two scores."""
    return stdev(x - y for x, y in zip(a.scores, b.scores, strict=True)) / math.sqrt(len(a.scores))


def same(a: Option, b: Option) -> bool:
    """Whether two options replay and correct alike; a clip hangs on N alone."""
    return a.name == b.name or (a.replay is not None and (a.replay, a.correction) == (b.replay, b.correction))


def changes(
    atlas: Atlas, point: Point, advice: Callable[[Point], Option], names: Iterable[str] = AXES
) -> dict[str, dict[str, Any]]:
    """The nearest value along each axis at which another option is chosen, to either side; none where there is none in
    the map."""
    mine = advice(point)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        x = float(getattr(point, name))
        for side, ahead in (("below", [v for v in walk(atlas.axes[name], name) if v < x][::-1]), ("above", [])):
            ahead = ahead or ([v for v in walk(atlas.axes[name], name) if v > x] if side == "above" else [])
            for value in ahead:
                moved = replace(point, **{name: type(getattr(point, name))(value)})
                other = advice(moved)
                if not same(other, mine):
                    found.setdefault(name, {})[side] = {"at": value, "advice": other.name}
                    break
    return found


def walk(values: Sequence[float], axis: str) -> list[float]:
    """The points of an axis at which a change is looked for: its values, and of a number that is no count two between
    each two."""
    if axis in ("updates", "group"):
        return list(values)
    between_ = (a * (b / a) ** (k / 3) for a, b in pairwise(values) for k in range(3))
    return [*(float(f"{v:.3g}") for v in between_), values[-1]]


def read(file: Path = SHIPPED) -> Atlas:
    """The map of a JSON file.

    Raises:
        DataError: it cannot be read, or is none.
    """
    return parse(shipped_text(file, "map"), str(file))


def parse(text: str, where: str) -> Atlas:
    """The map of JSON text; `where` it comes from is named in errors.

    Raises:
        DataError: it is none, or its options are not those of this version.
    """
    try:
        raw = json.loads(text)
        cells = {(c["right"], c["horizon"], c["kl"], c["flips"], c["step"]): c for c in raw["cells"]}
        found = Atlas(seeds=raw["seeds"], options=raw["options"], cells=cells)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} holds no map ({error}); install firstorder again") from None
    if not cells or list(OPTIONS) != list(found.options):
        raise DataError(f"{where} is a map of other options; run `make map ANSWER=...` on a new answer")
    return found


def plain(numbers: Numbers) -> dict[str, Any]:
    """As JSON."""
    return {
        "option": numbers.option.name,
        "replay": numbers.option.replay,
        "correction": numbers.option.correction,
        "clip": numbers.option.clip,
        "score": numbers.score,
        **{key: value for key, value in asdict(numbers).items() if isinstance(value, float)},
    }
