"""An answer of `recommend`, in numbers and in sentences, from what the options come to at a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstorder.sim.trials.atlas import Atlas, Choice, Numbers, Point
    from firstorder.sim.trials.options import Option

Advice = Callable[["Point"], "Option"]
PAPER: Mapping[int, str] = {1: "none", 2: "R2", 4: "R3", 8: "R3"}  # arXiv 2512.01374 sec. 5, by N
PAPER_POINT: Mapping[str, float] = {"kl": 1.5e-3, "flips": 0.10}  # of its engines: arXiv 2510.11370
NEAR = math.log(2)  # how far from the paper's engines its answer is still shown
RATIOS: Mapping[str, str] = {
    "theta/mu": "theta/mu",
    "truncated": "theta/mu truncated at 5",
    "theta/old": "no importance sampling",
}
SHOWN = 4  # tied options that are named


def answered(atlas: Atlas, point: Point, found: Mapping[str, Numbers], *, exact: bool) -> dict[str, Any]:
    """The fields of a result.

    Args:
        atlas: the map.
        point: the regime.
        found: what each option comes to there.
        exact: whether that was measured at the point.
    """
    from firstorder.sim.trials.atlas import changes, choose, plain
    from firstorder.sim.trials.options import OPTIONS
    from firstorder.sim.trials.ruled import allowed, applied

    choice, alone = choose(allowed(found, point)), choose(found)

    def advice(at: Point) -> Option:
        return choose(allowed(atlas.numbers(at), at)).chosen.option

    words = {"said": f"recommended: {_named(choice.chosen.option, point)}", "command": _command(choice.chosen, point)}
    return {
        "advice": plain(choice.chosen) | words,
        "why": _why(choice, found, alone),
        "sure": _sure(atlas, point, choice, advice, exact=exact),
        "changes": changes(atlas, point, advice),
        "training": [
            {"rule": rule.name, "found": rule.found(point), "source": rule.source} for rule in applied(point, OPTIONS)
        ],
        "paper": _paper(point, choice, found),
        "options": [plain(each) for each in sorted(found.values(), key=lambda each: -each.score)],
    }


def _named(one: Option, point: Point) -> str:
    """A recipe in words."""
    if one.replay is None or one.correction is None:
        return one.base
    idle = "MiniRL's clip, which cannot act at N = 1"
    clip = idle if point.updates == 1 else "MiniRL's clip" if one.clip == "clip" else "no clip"
    return f"{_replay(one.replay)}, {RATIOS[one.correction]}, {clip}"


def _replay(name: str | None) -> str:
    return "no replay" if name in ("none", None) else str(name)


def _command(numbers: Numbers, point: Point) -> str:
    """How to train it."""
    idle = {"clip.kind"} if point.updates == 1 else set()
    keys = {key: value for key, value in numbers.option.keys.items() if key not in idle}
    keys |= {"schedule.minibatches": point.updates, "schedule.group_size": point.group}
    return " ".join(
        [f"firstorder train {numbers.option.base}", *(f"--set {key}={value}" for key, value in keys.items())]
    )


def _why(choice: Choice, found: Mapping[str, Numbers], alone: Choice) -> list[str]:
    """From the numbers: what other replays come to, which are tied, and what a single update alone would choose."""
    one = choice.chosen.option
    lines = []
    if one.replay is not None:
        same = [each for each in found.values() if _beside(each.option, one)]
        said = ", ".join(f"{_replay(each.option.replay)} {each.error:.3g} ({each.score:.3g})" for each in same)
        lines.append(f"relative error of the update, and in brackets its cosine as sampled: {said}")
    tied = [each.option.name for each in choice.tied if each.option.name != one.name]
    if tied:
        more = f" and {len(tied) - SHOWN} more" if len(tied) > SHOWN else ""
        lines.append(f"tied with it, of no fewer parts: {'; '.join(tied[:SHOWN])}{more}")
    if alone.chosen.option.name != one.name:
        other = alone.chosen
        lines.append(
            f"a single update alone asks for {other.option.name}: as sampled {other.score:.3g} against "
            f"{choice.chosen.score:.3g}, error {other.error:.3g}; training is against it, see below"
        )
    return lines


def _beside(a: Option, b: Option) -> bool:
    """Whether two options differ in their replay at most."""
    return (a.correction, a.clip) == (b.correction, b.clip)


def _sure(atlas: Atlas, point: Point, choice: Choice, advice: Advice, *, exact: bool) -> dict[str, Any]:
    """How far the nearest measured cell is, how the cells around agree, and the spread over seeds."""
    from firstorder.sim.trials.atlas import apart, choose, same
    from firstorder.sim.trials.ruled import allowed

    chosen = choice.chosen

    def agrees(key: Any) -> bool:
        there = choose(allowed(atlas.numbers(point, [(key, 1.0)]), point)).chosen
        return same(there.option, chosen.option)

    agree = sum(weight for key, weight in atlas.corners(point) if agrees(key))
    nearest, outside = atlas.nearest(point), atlas.outside(point)
    one, distance = atlas.cells[nearest], atlas.distance(point, nearest)
    apart_from = (each for each in choice.ranked if each.option.replay != chosen.option.replay)
    other = next((each for each in apart_from if list(each.scores) != list(chosen.scores)), None)  # not what is inert
    lines = [f"measured at this point, {len(chosen.scores)} policies"] if exact else []
    if outside:
        edges = ", ".join(f"{axis} {edge:.3g}" for axis, edge in outside.items())
        lines.append(f"outside the map, whose edge is taken: {edges}")
    lines += [
        f"nearest cell, {distance:.2g} away in logarithms: KL {one['kl_found']:.3g}, of which R3 leaves "
        f"{one['kl_replayed']:.3g}, flips {one['flips_found']:.3g}, T {one['horizon']:,}, entropy {one['entropy']:.2g}",
        f"of the cells around, {agree:.0%} by weight ask for the same"
        if atlas.around(point)
        else "no cell around it exists, and the nearest is taken",
    ]
    lead: dict[str, Any] | None = None
    if other is not None:
        lead = {"over": other.option.name, "value": chosen.score - other.score, "error": apart(chosen, other)}
        side = "ahead of" if lead["value"] >= 0 else "simpler than, and behind,"
        lines.append(
            f"{side} {other.option.name} by {abs(lead['value']):.2g} ± {lead['error']:.2g} as sampled, over "
            f"{len(chosen.scores)} policies"
        )
    return {
        "said": lines,
        "inside": not outside,
        "outside": outside,
        "nearest": {key: one[key] for key in ("kl_found", "flips_found", "horizon", "entropy", "kl_replayed", "step")},
        "distance": distance,
        "agree": agree,
        "lead": lead,
    }


def changes_said(changes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Where another recipe is recommended, a line an axis."""
    from firstorder.sim.trials.atlas import AXES

    if not changes:
        yield "nowhere along a single axis of the map"
    for axis, sides in changes.items():
        parts = (f"{'down' if side == 'below' else 'up'} to {x['at']:,.3g}: {x['advice']}" for side, x in sides.items())
        yield f"{AXES[axis]}, {'; '.join(parts)}"


def _paper(point: Point, choice: Choice, found: Mapping[str, Numbers]) -> dict[str, Any] | None:
    """The paper's answer where the engines are near the paper's, and N is one that it tried."""
    from firstorder.sim.trials.atlas import apart

    near = all(abs(math.log(getattr(point, name) / value)) <= NEAR for name, value in PAPER_POINT.items())
    if not near or point.updates not in PAPER:
        return None
    theirs, chosen = PAPER[point.updates], choice.chosen
    agrees = theirs == chosen.option.replay
    said = f"arXiv 2512.01374 at N = {point.updates}: {_replay(theirs)} with theta/mu and MiniRL's clip"
    own = found[f"{theirs}, theta/mu, {'no clip' if point.updates == 1 else 'clip'}"]
    if agrees:
        said += "; the same"
    else:
        tied = any(each.option.name == own.option.name for each in choice.tied)
        said += (
            f"; here it is {'tied' if tied else 'behind'}: as sampled {own.score:.3g} against {chosen.score:.3g}, ± "
            f"{apart(own, chosen):.2g}"
        )
    return {"replay": theirs, "agrees": agrees, "said": said}
