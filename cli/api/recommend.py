"""Which recipe a regime asks for, how sure that is, and where the answer changes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .advised import answered, changes_said
from .matched import read_match
from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.sim.trials.atlas import Numbers, Point

SCHEMA = "firstorder.recommend/1"
DEFAULTS: Mapping[str, float] = {"n": 1, "horizon": 8192, "group": 16, "entropy": 0.7, "step": 1e-4}
FIELDS: Mapping[str, str] = {
    "kl": "kl",
    "flips": "flips",
    "n": "updates",
    "horizon": "horizon",
    "group": "group",
    "entropy": "entropy",
    "step": "step",
}
"""Options, and what they are called in a `Point`."""
RANGES: Mapping[str, tuple[float, float]] = {
    "kl": (1e-9, 10.0),
    "flips": (1e-6, 1.0),
    "n": (1, 1024),
    "horizon": (1, 1 << 20),
    "group": (2, 4096),
    "entropy": (1e-6, 20.0),
    "step": (1e-9, 1.0),
}


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RecommendResult(Result):
    """An answer.

    Args:
        point: the regime.
        given: where each number of it comes from: `option`, `default`, or the evidence.
        advice: the recipe and what is expected of it.
        why: in sentences.
        sure: distance, spread, and whether the map holds the regime.
        changes: by axis and side, where another recipe is recommended.
        training: what training has found that went before the map.
        paper: what arXiv 2512.01374 recommends, where the regime is near its own; else None.
        options: every option with its numbers, best first.
    """

    point: Mapping[str, float]
    given: Mapping[str, str]
    advice: Mapping[str, Any]
    why: Sequence[str]
    sure: Mapping[str, Any]
    changes: Mapping[str, Mapping[str, Any]]
    training: Sequence[Mapping[str, str]]
    paper: Mapping[str, Any] | None
    options: Sequence[Mapping[str, Any]]

    def blocks(self) -> Iterator[Table | Text]:
        """The recipe, why, how sure, and where the answer changes."""
        from rich.table import Table
        from rich.text import Text

        one, sure = self.advice, self.sure
        yield Text(one["said"], style="bold green")
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        table.add_row("regime", self._regime())
        table.add_row("run", one["command"])
        table.add_row(
            "expected",
            f"gradient error {one['error']:.3g}, cosine {one['cosine']:.4g}, {one['score']:.3g} as sampled; effective "
            f"share of the tokens {one['ess']:.3g}, of whole responses {one['sequence_ess']:.2g}",
        )
        for line in self.why:
            table.add_row("why", line)
        for line in sure["said"]:
            table.add_row("how sure", line)
        for line in changes_said(self.changes):
            table.add_row("changes", line)
        for each in self.training:
            table.add_row("training", f"{each['found']} ({each['source']})")
        if self.paper is not None:
            table.add_row("the paper", self.paper["said"])
        yield table

    def _regime(self) -> str:
        p = self.point
        words = {
            "kl": f"KL {p['kl']:.3g} nats a token",
            "flips": f"{p['flips']:.3g} of the routes flipped",
            "n": f"N = {p['n']:g}",
            "horizon": f"T = {p['horizon']:,.0f}",
            "group": f"G = {p['group']:g}",
            "entropy": f"entropy {p['entropy']:.2g}",
            "step": f"step {p['step']:.2g} nats a token",
        }
        marks = {"option": "", "default": " (default)"}
        return ", ".join(
            f"{said}{marks.get(self.given[name], ' (' + self.given[name] + ')')}" for name, said in words.items()
        )

    def records(self) -> list[dict[str, Any]]:
        """A row for each option: its parts, gradient error, cosine, ESS and score."""
        return [dict(row) for row in self.options]

    def plot(self) -> Figure:
        """The map of advice over KL and flips, for each N, with this regime in it."""
        require_matplotlib()
        from firstorder.cli.report.advice import advice
        from firstorder.sim.trials.atlas import read

        return advice(read().rows(), dict(self.point))


def recommend(
    *,
    kl: float | None = None,
    flips: float | None = None,
    n: int | None = None,
    horizon: int | None = None,
    group: int | None = None,
    entropy: float | None = None,
    match: str | None = None,
    exact: bool = False,
    step: float | None = None,
) -> RecommendResult:
    """The recipe that a regime asks for, from the map of `firstorder study map`, or measured at the very point.

    Args:
        kl: KL(μ_old ‖ π_old), nats a response token, live routes.
        flips: share of (token, layer) whose experts differ between the engines.
        n: updates a rollout, N.
        horizon: tokens of a response, T.
        group: responses to a prompt, G.
        entropy: of the policy, nats a token.
        match: a run folder, or the JSON of a probe or an audit, which the numbers are read from that are not given.
        exact: measure the options at this point, which takes up to a minute.
        step: KL(π_old ‖ π_θ) after one update, nats a token.

    Raises:
        ConfigError: a number is missing or out of range, the evidence cannot be read, or, with `exact`, no engines of
            the simulator are that far apart.
    """
    from firstorder import __version__
    from firstorder.sim.trials import atlas as maps

    started = time.perf_counter()
    options = {"kl": kl, "flips": flips, "n": n, "horizon": horizon, "group": group, "entropy": entropy, "step": step}
    numbers, given = _numbers(options, match)
    _check(numbers)
    point = point_of(numbers)
    atlas = maps.read()
    found = _exact(point) if exact else atlas.numbers(point)
    answer = answered(atlas, point, found, exact=exact)
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": time.perf_counter() - started,
        "exact": exact,
        "given": given,
        "result": {"point": numbers} | answer,
    }
    return RecommendResult(document=document, point=numbers, given=given, **answer)


def point_of(numbers: Mapping[str, float]) -> Point:
    """The regime of numbers by the names of the options."""
    from firstorder.sim.trials.atlas import Point

    return Point(
        kl=numbers["kl"],
        flips=numbers["flips"],
        updates=round(numbers["n"]),
        horizon=round(numbers["horizon"]),
        group=round(numbers["group"]),
        entropy=numbers["entropy"],
        step=numbers["step"],
    )


def _numbers(options: Mapping[str, float | None], match: str | None) -> tuple[dict[str, float], dict[str, str]]:
    """The regime, and where each number comes from: an option, else the evidence, else a default."""
    from firstorder.core.errors import ConfigError

    read = {} if match is None else read_match(match)
    numbers, given = {}, {}
    for name, value in options.items():
        for source, held in (("option", value), (f"of {match}", read.get(name)), ("default", DEFAULTS.get(name))):
            if held is not None and name not in numbers:
                numbers[name], given[name] = float(held), source
        if name not in numbers:
            lead = "" if match is None else f"--match {match} holds none, so "
            raise ConfigError(f"{lead}--{name} is needed; give it, or --match with a run, probe or audit that has it")
    return numbers, given


def _check(numbers: Mapping[str, float]) -> None:
    from firstorder.core.errors import ConfigError

    for name, value in numbers.items():
        low, high = RANGES[name]
        if not low <= value <= high:  # of NaN too
            raise ConfigError(f"--{name} must be between {low:g} and {high:g}, got {value:g}")


def _exact(point: Point) -> dict[str, Numbers]:
    """The options measured at the point itself."""
    from firstorder.sim.trials.pointed import at

    return at(point)
