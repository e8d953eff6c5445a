"""The methods of the golden vectors: every shipped recipe, and one for each kind of part that no recipe has.

Two recipes with the same keys here make the same weights of the same batch: a schedule, an optimiser, whose experts
are replayed and how advantages are made are all settled before a weight is formed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read, shipped

SECTIONS = ("ratio", "correction", "rejection", "clip", "aggregation")

REJECTED: tuple[tuple[str, str, float, float], ...] = (
    ("token", "k1", math.log(0.47), math.log(2.3)),
    ("token", "k2", -math.inf, 0.1),
    ("token", "k3", -math.inf, 0.1),
    ("sum", "k1", math.log(0.37), math.log(1.17)),
    ("sum", "k2", -math.inf, 0.3),
    ("sum", "k3", -math.inf, 0.3),
    ("mean", "k1", math.log(0.8), math.log(1.06)),
    ("mean", "k2", -math.inf, 0.04),
    ("mean", "k3", -math.inf, 0.04),
    ("max", "k2", -math.inf, 0.2),
    ("max", "k3", -math.inf, 0.2),
)
"""What verl rejects by: over, kind, low and high."""

OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "ratio-old-mu": {"ratio": {"of": "old/mu"}},
    "ratio-geometric": {"ratio": {"of": "theta/mu", "span": "geometric"}},
    "ratio-prefix": {"ratio": {"of": "theta/old", "span": "prefix"}},
    "ratio-forward": {"ratio": {"of": "theta/mu", "span": "forward", "steps": 3}},
    "ratio-sequence-old": {"ratio": {"of": "theta/old", "span": "sequence"}},
    "correction-sequence": {"correction": {"kind": "ratio", "span": "sequence"}, "ratio": {"of": "theta/old"}},
    "tis-sequence": {"correction": {"kind": "truncate", "span": "sequence", "high": 2.0}, "ratio": {"of": "theta/old"}},
    "tis-geometric": {
        "correction": {"kind": "truncate", "span": "geometric", "high": 1.05},
        "ratio": {"of": "theta/old"},
    },
    "mask-sequence": {
        "correction": {"kind": "mask", "span": "sequence", "low": 0.6, "high": 3.0},
        "ratio": {"of": "theta/old"},
    },
    "sequence-mask": {
        "rejection": {"kind": "ratio", "over": "sum", "low": 0.6, "high": 3.0},
        "ratio": {"of": "theta/old"},
        "aggregation": {"kind": "token_mean"},
    },
    "ppo-clip-sequence": {
        "ratio": {"of": "theta/old", "span": "sequence"},
        "clip": {"kind": "ppo", "low": 0.2, "high": 0.2},
    },
    "cispo-tight": {"ratio": {"of": "theta/old"}, "clip": {"kind": "cispo", "low": 0.2, "high": 0.28}},
    "geometric-mask": {
        "rejection": {"kind": "ratio", "over": "mean", "low": 0.96, "high": 1.12},
        "ratio": {"of": "theta/mu"},
    },
    "mean-kl": {"rejection": {"kind": "kl", "over": "mean", "high": 0.03}, "ratio": {"of": "theta/mu"}},
    "max-kl": {"rejection": {"kind": "kl", "over": "max", "high": 0.2}, "ratio": {"of": "theta/old"}},
    "token-kl": {"rejection": {"kind": "kl", "over": "token", "high": 0.1}, "ratio": {"of": "theta/old"}},
    **{
        f"rejection-{over}-{kind}": {
            "rejection": {"kind": kind, "over": over, "low": low, "high": high},
            "ratio": {"of": "theta/mu"},
        }
        for over, kind, low, high in REJECTED
    },
    "rejection-negative": {
        "rejection": {"kind": "k1", "of": "theta/mu", "over": "mean", "high": 0.11, "where": "negative"},
        "ratio": {"of": "theta/old"},
    },
    "truncate-and-mask": {
        "correction": {"kind": "truncate", "high": 1.3},
        "rejection": {"kind": "k3", "over": "token", "high": 0.3},
        "ratio": {"of": "theta/old"},
        "clip": {"kind": "ppo", "low": 0.2, "high": 0.2},
    },
    "tis-mean-one-sequence": {
        "correction": {"kind": "truncate", "span": "sequence", "high": 2.0, "mean_one": True},
        "ratio": {"of": "theta/old"},
    },
    "ratio-turn": {"ratio": {"of": "theta/mu", "span": "turn"}},
    "tis-turn": {
        "correction": {"kind": "truncate", "span": "turn_geometric", "low": 0.8, "high": 1.2},
        "ratio": {"of": "theta/old"},
    },
    "dual-clip-sequence": {
        "ratio": {"of": "theta/old", "span": "sequence"},
        "clip": {"kind": "dual", "low": 0.2, "high": 0.2, "cap": 1.4},
    },
    "sapo-sharp": {
        "ratio": {"of": "theta/old", "span": "geometric"},
        "clip": {"kind": "sapo", "temperature": [4.0, 8.0]},
    },
    "length-half": {"ratio": {"of": "theta/old"}, "aggregation": {"kind": "length", "alpha": 0.5}},
}
"""By name, the keys that are not the defaults, of methods that no recipe ships."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to make weights.

    Args:
        name: of the shipped recipe, the shortest where several make the same weights, or a key of `OTHERS`.
        recipes: those that make these weights.
        recipe: one that does.
    """

    name: str
    recipes: tuple[str, ...]
    recipe: Recipe

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved keys that weights hang on, dotted as TOML has them."""
        return {
            f"{section}.{key}": value
            for section in SECTIONS
            for key, value in getattr(self.recipe, section).model_dump().items()
        }


def methods() -> list[Method]:
    """Every method, by name; recipes that do not fit the form are left out. What terms add to a recipe's weights is
    in `additive`."""
    alike: dict[str, list[Recipe]] = {}
    for name in shipped():
        recipe = build(Recipe, read(name))
        if not recipe.about.unsupported:
            alike.setdefault(_key(recipe), []).append(recipe)
    found = []
    for recipes in alike.values():
        names = sorted((one.about.name for one in recipes), key=lambda name: (len(name), name))
        found.append(Method(name=names[0], recipes=tuple(sorted(names)), recipe=recipes[0]))
    found += [Method(name=name, recipes=(), recipe=build(Recipe, keys)) for name, keys in OTHERS.items()]
    return sorted(found, key=lambda method: method.name)


def _key(recipe: Recipe) -> str:
    """What two recipes that make the same weights have in common."""
    return json.dumps({section: getattr(recipe, section).model_dump() for section in SECTIONS}, sort_keys=True)
