"""What training has found, and the gradient of a single update cannot: the rules that go before the map.

Each rule leaves options out, and says what was found and where. A single update is judged by its direction; what a bias
that points the same way for hundreds of updates does, and what a clip does that holds an update back, only a training
run shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .atlas import Numbers, Point
from .options import Option


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What training says.

    Args:
        name: short.
        drops: whether an option is left out at a point.
        found: what runs have shown.
        source: where it stands.
    """

    name: str
    drops: Callable[[Option, Point], bool]
    found: str
    source: str


RULES: tuple[Rule, ...] = (
    Rule(
        name="importance sampling",
        drops=lambda option, point: option.correction == "theta/old" or option.name == "cispo",
        found="without theta/mu no trained condition led, and at 2,048 tokens under a KL of 0.05, and at 8,192 under "
        "0.007, all of 8 seeds collapsed, with it none",
        source="training-long-is, training-long-no-is; studies: regimes; arXiv 2512.01374 sec. 5.2",
    ),
    Rule(
        name="clip",
        drops=lambda option, point: point.updates > 1 and option.clip == "no clip",
        found="with 16 updates of 64 responses a rollout the clip led by 0.32 [0.10, 0.48], with 64 by 0.54 [0.39, 0.74]; "
        "with 8 exact expected updates it cost 0.08 [0.03, 0.09]",
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
