"""Which recipe a regime asks for, how sure that is, and where the answer changes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .matched import read_match
from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.sim.trials.atlas import Atlas, Choice, Numbers, Point

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
PAPER: Mapping[int, str] = {1: "none", 2: "R2", 4: "R3", 8: "R3"}
PAPER_POINT = {"kl": 1.5e-3, "flips": 0.10}
NEAR = math.log(2)  # within a factor of two of the paper's engines
NAMES = {"theta/mu": "theta/mu", "truncated": "theta/mu truncated at 5", "theta/old": "no importance sampling"}


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
            f"gradient error {one['error']:.3g}, cosine {one['cosine']:.4g}, effective share of the tokens "
            f"{one['ess']:.3g}, of whole responses {one['sequence_ess']:.2g}; cosine of a sampled update {one['score']:.3g}",
        )
        for line in self.why:
            table.add_row("why", line)
        for line in sure["said"]:
            table.add_row("how sure", line)
        for line in _changes_said(self.changes):
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
    point = maps.Point(
        kl=numbers["kl"],
        flips=numbers["flips"],
        updates=round(numbers["n"]),
        horizon=round(numbers["horizon"]),
        group=round(numbers["group"]),
        entropy=numbers["entropy"],
        step=numbers["step"],
    )
    atlas = maps.read()
    found = _exact(point) if exact else atlas.numbers(point)
    answer = _answered(atlas, point, found, exact)
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": time.perf_counter() - started,
        "exact": exact,
        "given": given,
        "result": {"point": numbers} | answer,
    }
    return RecommendResult(document=document, point=numbers, given=given, **answer)


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


def _answered(atlas: Atlas, point: Point, found: Mapping[str, Numbers], exact: bool) -> dict[str, Any]:
    from firstorder.sim.trials.atlas import changes, choose, plain
    from firstorder.sim.trials.options import OPTIONS
    from firstorder.sim.trials.ruled import allowed, applied

    choice, alone = choose(allowed(found, point)), choose(found)

    def advice(at: Point) -> Any:
        return choose(allowed(atlas.numbers(at), at)).chosen.option

    chosen = choice.chosen.option
    paper = _paper(point, chosen.replay)
    return {
        "advice": plain(choice.chosen) | {"said": _said(chosen.name, point), "command": _command(choice.chosen, point)},
        "why": _why(choice, found, alone),
        "sure": _sure(atlas, point, choice, advice, exact),
        "changes": changes(atlas, point, advice),
        "training": [{"rule": r.name, "found": r.found, "source": r.source} for r in applied(point, OPTIONS)],
        "paper": paper,
        "options": [plain(each) for each in sorted(found.values(), key=lambda each: -each.score)],
    }


def _said(name: str, point: Point) -> str:
    """The recipe in words."""
    from firstorder.sim.trials.options import OPTIONS

    one = OPTIONS[name]
    if one.replay is None or one.correction is None:
        return f"recommended: {one.base}"
    replay = "no replay" if one.replay == "none" else one.replay
    clip = (
        "MiniRL's clip, which cannot act"
        if point.updates == 1
        else ("MiniRL's clip" if one.clip == "clip" else "no clip")
    )
    return f"recommended: {replay}, {NAMES[one.correction]}, {clip}"


def _command(numbers: Numbers, point: Point) -> str:
    """How to measure or train it."""
    from firstorder.core.settings.toml import literal

    keys = {key: value for key, value in numbers.option.keys.items() if not (key == "clip.kind" and point.updates == 1)}
    keys["schedule.minibatches"] = point.updates
    settings = " ".join(
        f"--set {key}={str(value) if isinstance(value, str) else literal(value)}" for key, value in keys.items()
    )
    return f"firstorder train {numbers.option.base} {settings}"


def _why(choice: Choice, found: Mapping[str, Numbers], alone: Choice) -> list[str]:
    """From the numbers: what the other replays, and the update without the ratio, come to."""
    one = choice.chosen.option
    lines = []
    if one.replay is not None:
        same = {
            each.option.replay: each
            for each in found.values()
            if (each.option.correction, each.option.clip) == (one.correction, one.clip)
        }
        said = [
            f"{'no replay' if name == 'none' else name} {each.error:.3g} ({each.score:.3g})"
            for name, each in same.items()
        ]
        lines.append(f"off the natural gradient, and in brackets the cosine of a sampled update: {', '.join(said)}")
    tied = [each.option.name for each in choice.tied if each.option.name != one.name]
    if tied:
        lines.append(f"tied within two standard errors, and with more parts or no better: {'; '.join(tied)}")
    if alone.chosen.option.name != one.name:
        other = alone.chosen
        lines.append(
            f"a single update alone would choose: {other.option.name} (error {other.error:.3g}, cosine {other.cosine:.3g}, "
            f"of a sampled update {other.score:.3g} against {choice.chosen.score:.3g}); training is against it, see below"
        )
    return lines


def _sure(atlas: Atlas, point: Point, choice: Choice, advice: Any, exact: bool) -> dict[str, Any]:
    """How far the nearest measured cell is, how the cells around agree, and the spread over seeds."""
    from firstorder.sim.trials.atlas import apart, choose
    from firstorder.sim.trials.ruled import allowed

    name, chosen = choice.chosen.option.name, choice.chosen
    around = atlas.corners(point)
    agree = sum(
        w for key, w in around if choose(allowed(atlas.numbers(point, [(key, 1.0)]), point)).chosen.option.name == name
    )
    nearest = atlas.nearest(point)
    one, outside = atlas.cells[nearest], atlas.outside(point)
    other = next((each for each in choice.ranked if each.option.replay != chosen.option.replay), None)
    lines = []
    if exact:
        lines.append(f"measured at this point, {len(chosen.scores)} policies")
    if outside:
        edges = ", ".join(f"{axis} {edge:.3g}" for axis, edge in outside.items())
        lines.append(f"outside the map, whose edge is taken: {edges}")
    lines.append(
        f"the nearest cell measured: KL {one['kl_found']:.3g}, flips {one['flips_found']:.3g}, T {one['horizon']:,}, "
        f"entropy {one['entropy']:.2g}, {atlas.distance(point, nearest):.2g} away in logarithms; R3 leaves a KL of "
        f"{one['kl_replayed']:.3g} there"
    )
    lines.append(f"of the cells around, {agree:.0%} by weight say the same")
    lead = None
    if other is not None:
        lead = {"over": other.option.name, "value": chosen.score - other.score, "error": apart(chosen, other)}
        lines.append(
            f"ahead of {other.option.name} by {lead['value']:.2g} ± {lead['error']:.2g} over {len(chosen.scores)} policies"
        )
    return {
        "said": lines,
        "inside": not outside,
        "outside": outside,
        "nearest": {key: one[key] for key in ("kl_found", "flips_found", "horizon", "entropy", "kl_replayed")},
        "distance": atlas.distance(point, nearest),
        "agree": agree,
        "lead": lead,
    }


def _changes_said(changes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    from firstorder.sim.trials.atlas import AXES

    if not changes:
        yield "nowhere along a single axis of the map"
    for axis, sides in changes.items():
        parts = [
            f"{side.replace('below', 'down').replace('above', 'up')} at {x['at']:,.3g}: {x['advice']}"
            for side, x in sides.items()
        ]
        yield f"{AXES[axis]}, {'; '.join(parts)}"


def _paper(point: Point, replay: str | None) -> dict[str, Any] | None:
    """The paper's answer where the engines are near the paper's, and its N among those it tried."""
    near = all(abs(math.log(getattr(point, name) / value)) <= NEAR for name, value in PAPER_POINT.items())
    if not near or point.updates not in PAPER:
        return None
    own = PAPER[point.updates]
    words = {"none": "no replay", "R2": "R2", "R3": "R3"}
    agrees = own == replay
    said = f"arXiv 2512.01374 at N = {point.updates}: {words[own]} with theta/mu and MiniRL's clip; {'the same' if agrees else 'another replay'}"
    return {"replay": own, "agrees": agrees, "said": said}
