"""Recipes as they were written before some parts were added: read as ever, and with the fingerprint that they had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .sections import Advantage, Clip, Correction, Rejection, RouterReplay, Terms

MOVED = {
    "sequence_mask": ("ratio", "sum"),
    "geometric_mask": ("ratio", "mean"),
    "max_kl": ("kl", "max"),
    "mean_kl": ("kl", "mean"),
}
"""Kinds that `[correction]` had, and `kind` and `over` of `[rejection]` that do the same."""
SHARED = ("of", "low", "high")  # their keys
NO_BOUND = ("low", 0.0)  # nothing that they judge is below it; `as_before` writes it for the -inf of today
ADDED = {
    "advantage": (Advantage(), ("scale",)),
    "clip": (Clip(), ("cap", "temperature")),
    "correction": (Correction(), ("mean_one",)),
    "router_replay": (RouterReplay(), ("gates", "margin", "condition")),
}
"""By section, its defaults and the keys that came later."""


def moved(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a recipe with a mask of `[correction]` put where it belongs.

    Args:
        given: as they are read, unchecked.

    Raises:
        ValueError: `[rejection]` says something else.

    Example:
        >>> moved({"correction": {"kind": "max_kl", "high": 0.05}})
        {'rejection': {'kind': 'kl', 'over': 'max', 'high': 0.05}}
    """
    old = given.get("correction")
    kind = old.get("kind") if isinstance(old, Mapping) else None
    if not isinstance(old, Mapping) or not isinstance(kind, str) or kind not in MOVED:
        return dict(given)
    new = dict(zip(("kind", "over"), MOVED[kind], strict=True))
    if given.get("rejection"):
        raise ValueError(
            f"correction.kind = {kind} is the older name of rejection.kind = {new['kind']} with rejection.over = "
            f"{new['over']}, and [rejection] is given too; keep [rejection] and remove correction.kind"
        )
    rest = {key: value for key, value in old.items() if key not in ("kind", *SHARED)}
    kept = {**given, "correction": rest} if rest else {key: given[key] for key in given if key != "correction"}
    bounds = {key: old[key] for key in SHARED if key in old and (key, old[key]) != NO_BOUND}
    return kept | {"rejection": new | bounds}


def as_before(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe in the older spelling, where it has one: without the parts that came later and do nothing.

    Args:
        tree: every key of every section.
    """
    sections = {
        name: {
            key: value
            for key, value in section.items()
            if name not in ADDED or key not in ADDED[name][1] or value != _plain(getattr(ADDED[name][0], key))
        }
        for name, section in tree.items()
    }
    if sections["terms"] == Terms().model_dump():
        del sections["terms"]
    rejection, correction = sections.pop("rejection"), sections["correction"]
    older = {new: kind for kind, new in MOVED.items()}.get((rejection["kind"], rejection["over"]))
    if rejection["kind"] == "none":
        return sections
    if older is None or correction["kind"] != "none" or rejection["where"] != Rejection().where:
        return sections | {"rejection": rejection}
    judged = {"kind": older, "of": rejection["of"], "low": max(0.0, rejection["low"]), "high": rejection["high"]}
    return sections | {"correction": correction | judged}


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value
