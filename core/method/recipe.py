"""Recipes: a method and a schedule, typed and checked, and nothing about any backend.

A recipe is read from TOML (`core.settings.toml`), names every part of the weight
`w_t = A · clip(ratio) · correction · kept / norm` and declares its scope, which is checked against its parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import model_validator

from firstorder.core.errors import ConfigError
from firstorder.core.settings.overrides import pairs
from firstorder.core.settings.section import Section
from firstorder.core.settings.toml import assign, build, dump

from .contradictions import contradictions
from .older import as_before, moved
from .parts import (
    AGGREGATIONS,
    BASELINES,
    CLIPS,
    CORRECTIONS,
    MEAN_ONE,
    OVERS,
    RATIOS,
    REJECTIONS,
    REPLAYS,
    ROUTER_FLOOR,
    SCALES,
    SCOPES,
    SPANS,
    Part,
    Scope,
)
from .sections import (
    STEP_WHY,
    About,
    Advantage,
    Aggregation,
    Clip,
    Correction,
    Critic,
    Optimizer,
    Ratio,
    Rejection,
    RouterReplay,
    Schedule,
    Terms,
)

__all__ = [
    "STEP_WHY",
    "About",
    "Advantage",
    "Aggregation",
    "Clip",
    "Correction",
    "Critic",
    "Optimizer",
    "Ratio",
    "Recipe",
    "Rejection",
    "RouterReplay",
    "Schedule",
    "Terms",
    "check_runs",
    "fingerprint",
]


class Recipe(Section):
    """One method with its schedule; see the section classes for the keys."""

    about: About = About()
    advantage: Advantage = Advantage()
    ratio: Ratio = Ratio()
    correction: Correction = Correction()
    rejection: Rejection = Rejection()
    clip: Clip = Clip()
    aggregation: Aggregation = Aggregation()
    terms: Terms = Terms()
    router_replay: RouterReplay = RouterReplay()
    schedule: Schedule = Schedule()
    optimizer: Optimizer = Optimizer()
    critic: Critic = Critic()

    @property
    def parts(self) -> dict[str, Part]:
        """The rows of `core.method.parts` that it is made of, by the dotted key that names each."""
        named = {
            "advantage.baseline": BASELINES[self.advantage.baseline],
            "advantage.scale": SCALES[self.advantage.scale],
            "ratio.of": RATIOS[self.ratio.of],
            "ratio.span": SPANS[self.ratio.span],
            "correction.kind": CORRECTIONS[self.correction.kind],
            "rejection.kind": REJECTIONS[self.rejection.kind],
            "clip.kind": CLIPS[self.clip.kind],
            "aggregation.kind": AGGREGATIONS[self.aggregation.kind],
            "router_replay.mode": REPLAYS[self.router_replay.mode],
        }
        if "span" in named["correction.kind"].keys:
            named["correction.span"] = SPANS[self.correction.span]
        if self.correction.mean_one:
            named["correction.mean_one"] = MEAN_ONE
        if self.rejection.kind != "none":
            named["rejection.over"] = OVERS[self.rejection.over]
        if self.ratio.router_floor is not None:
            named["ratio.router_floor"] = ROUTER_FLOOR
        return named

    def compared(self, key: str) -> str | None:
        """The two policies that one of its `parts` or `terms` compares, such as `theta/old`; None if it has no such."""
        if key.startswith("terms."):
            return self.terms.compared(key.removeprefix("terms."))
        part = self.parts.get(key)
        if part is None:
            return None
        if part.compares != "of":
            return part.compares
        sections = {"correction": self.correction.of, "rejection": self.rejection.of}
        return sections.get(key.split(".")[0], self.ratio.of)

    @property
    def has_critic(self) -> bool:
        """Whether advantages come from a learned value of each context."""
        return self.advantage.baseline == "value"

    @property
    def over_group(self) -> bool:
        """Whether advantages are taken against the other responses of a prompt."""
        return self.advantage.over_group

    @property
    def weight_scope(self) -> Scope:
        """How much of a batch one token's weight reads, its advantage being given.

        `token` weights can be formed inside a chunk of the update's forward; the others need a pass without
        gradient first.
        """
        return _widest(part for key, part in self.parts.items() if not key.startswith("advantage."))

    @property
    def scope(self) -> Scope:
        """As `weight_scope`, the advantage included: a group baseline reads the group, and a scale the batch."""
        return _widest(self.parts.values())

    def __str__(self) -> str:
        return dump(self.model_dump(exclude_unset=True))

    def with_(self, overrides: Mapping[str, Any] | None = None, /, **sections: Any) -> Recipe:
        """A copy with keys of its sections laid over, checked as a recipe that is read.

        Args:
            overrides: by dotted key.
            sections: keys by section; those that are not given stay as they are.

        Raises:
            ConfigError: an unknown key, or a recipe that contradicts itself.

        Example:
            >>> Recipe().with_({"clip.low": 0.1}, clip={"high": 0.3}).clip
            Clip(kind='none', low=0.1, high=0.3, budget=0.04, cap=3.0, temperature=(1.0, 1.05))
        """
        tree = self.model_dump(exclude_unset=True)
        return build(Recipe, assign(tree, pairs(overrides or {}) + pairs(sections)))

    @property
    def needs(self) -> set[str]:
        """The fields of `TokenStats` that a weight reads and no rollout carries."""
        return {part.needs for part in self.parts.values() if part.needs is not None}

    @property
    def reads_signs(self) -> bool:
        """Whether a weight reads the signs of other responses' advantages."""
        return any(part.signs for part in self.parts.values())

    @model_validator(mode="before")
    @classmethod
    def _reads_older_spellings(cls, given: Any) -> Any:
        return moved(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for broken, what in contradictions(self):
            if broken:
                raise ValueError(what)
        return self


def _widest(named: Iterable[Part]) -> Scope:
    return max((part.scope for part in named), key=SCOPES.index)


def check_runs(recipe: Recipe) -> None:
    """Refuse a recipe whose method does not fit the form.

    Raises:
        ConfigError: with the reason that its file gives.
    """
    if recipe.about.unsupported:
        raise ConfigError(f"recipe {recipe.about.name} cannot be run: {recipe.about.unsupported}")


def fingerprint(recipe: Recipe) -> str:
    """SHA-256, in hexadecimal, of what a recipe does to a batch: its method, defaults included, and its N.

    Names, sizes of a batch and the optimizer are left out: they change from a small model to a large one. So is what
    `older.as_before` leaves out, so that a recipe keeps the one it had before there were more parts.

    Example:
        >>> fingerprint(Recipe()) == fingerprint(Recipe(optimizer=Optimizer(lr=1e-3)))
        True
    """
    tree = as_before(recipe.model_dump(mode="json", exclude={"about", "schedule", "optimizer", "critic"}))
    tree["minibatches"] = recipe.schedule.minibatches
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
