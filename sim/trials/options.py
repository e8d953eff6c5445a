"""The recipes that a recommendation is chosen from: a table of what they replay, how they correct and what they clip.

Every one has an exact form by edge on long responses (`firstorder.sim.exact.forms`), so that its bias and its variance
are exact. `gspo`, sequence masks and prefix ratios have none there, and are no candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstorder.core.method.recipe import Recipe

Keys = Mapping[str, Any]
TRUNCATED_AT = 5.0  # arXiv 2512.01374
REPLAYS: Mapping[str, Keys] = {
    "none": {},
    "R2": {"router_replay.mode": "R2"},
    "R3": {"router_replay.mode": "R3"},
    "R3 margin=0.003": {"router_replay.mode": "R3", "router_replay.margin": 0.003},
    "R3 condition=0.9": {"router_replay.mode": "R3", "router_replay.condition": 0.9},
}
CORRECTIONS: Mapping[str, Keys] = {
    "theta/mu": {},
    "truncated": {
        "ratio.of": "none",
        "correction.kind": "truncate",
        "correction.of": "theta/mu",
        "correction.high": TRUNCATED_AT,
    },
    "theta/old": {"ratio.of": "theta/old"},
}
CLIPS: Mapping[str, Keys] = {"no clip": {"clip.kind": "none"}, "clip": {}}
NAMED = ("cispo", "icepop")  # of other papers, as shipped


@dataclass(frozen=True, kw_only=True)
class Option:
    """A candidate.

    Args:
        name: in the map and in answers.
        base: the shipped recipe that it is made from.
        keys: what is set in it.
        replay, correction, clip: keys of the tables above; None in a shipped recipe.
        parts: how many parts it has beside the plain weighted sum: the fewer, the simpler.
    """

    name: str
    base: str
    keys: Keys
    replay: str | None = None
    correction: str | None = None
    clip: str | None = None
    parts: int

    def recipe(self, group: int) -> Recipe:
        """As a recipe, for groups of so many responses."""
        from firstorder.core.method.recipe import Recipe
        from firstorder.core.settings.toml import assign, build, read

        schedule = {"schedule.group_size": group, "schedule.prompts": 1, "schedule.minibatches": 1}
        return build(Recipe, assign(read(self.base), [*self.keys.items(), *schedule.items()]))


def _made(replay: str, correction: str, clip: str) -> Option:
    keys = {**REPLAYS[replay], **CORRECTIONS[correction], **CLIPS[clip]}
    used = (replay != "none", "=" in replay, correction == "truncated", clip == "clip")
    name = f"{replay}, {correction}, {clip}"
    return Option(name=name, base="minirl", keys=keys, replay=replay, correction=correction, clip=clip, parts=sum(used))


OPTIONS: Mapping[str, Option] = {
    each.name: each
    for each in (
        *(
            _made(replay, correction, clip)
            for replay, correction, clip in product(REPLAYS, CORRECTIONS, CLIPS)
            if correction == "theta/mu" or "=" not in replay
        ),
        *(Option(name=name, base=name, keys={}, parts=4) for name in NAMED),
    )
}
"""By name, in the order of the map."""
