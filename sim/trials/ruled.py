"""What training has found, and the gradient of a single update cannot: the rules that go before the map.

Each rule leaves options out, and says what was found and where. A single update is judged by its direction; what a bias
that points the same way for hundreds of updates does, and what a clip does that holds an update back, only a training
run shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .atlas import Numbers, Point
from .options import Option

BORDERS = Path(__file__).with_name("borders.json")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What training says.

    Args:
        name: short.
        drops: whether an option is left out at a point.
        found: what runs have shown, at a point.
        source: where it stands.
    """

    name: str
    drops: Callable[[Option, Point], bool]
    found: Callable[[Point], str]
    source: str


def _collapse(point: Point) -> str:
    """What is known of training without importance sampling at a length and a KL."""
    known = [each for each in json.loads(BORDERS.read_text(encoding="utf-8"))["borders"] if each["axis"] == "horizon"]
    said = ", ".join(f"{each['high']:,.0f} at a KL of {each['kl']:.2g}" for each in known)
    beyond = any(point.kl >= each["kl"] and point.horizon >= each["high"] for each in known)
    here = (
        "beyond which this regime lies" if beyond else "short of which this regime lies; the published pair's runs fell"
    )
    return (
        "without theta/mu training fell behind wherever it was tried from 128 tokens on, by 0.44 [0.40, 0.47] there, "
        f"and collapsed from so many tokens on: {said}, {here}"
    )


def _clip(point: Point) -> str:
    return (
        "the clip led by 0.32 [0.10, 0.48] with 16 updates of 64 responses a rollout, and by 0.54 [0.39, 0.74] with "
        "64; with 8 exact expected updates it cost 0.08 [0.03, 0.09]"
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="importance sampling",
        drops=lambda option, point: option.correction == "theta/old" or option.name == "cispo",
        found=_collapse,
        source="training-long-is, study regimes; arXiv 2512.01374 sec. 5.2",
    ),
    Rule(
        name="clip",
        drops=lambda option, point: point.updates > 1 and option.clip == "no clip",
        found=_clip,
        source="training-long-off-policy, training-stale; arXiv 2512.01374 sec. 5.3",
    ),
)
"""In the order in which they are applied."""


def allowed(numbers: Mapping[str, Numbers], point: Point) -> dict[str, Numbers]:
    """The options that no rule leaves out."""
    return {name: each for name, each in numbers.items() if not any(rule.drops(each.option, point) for rule in RULES)}


def applied(point: Point, options: Mapping[str, Option]) -> list[Rule]:
    """The rules that leave an option out at a point."""
    return [rule for rule in RULES if any(rule.drops(each, point) for each in options.values())]
