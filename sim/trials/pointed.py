"""The options measured at one point, in place of a map."""

from __future__ import annotations

import math

from firstorder.core.errors import ConfigError

from .atlas import BATCH, Numbers, Point
from .options import OPTIONS
from .regime import Regime, fits, fitted, measured

SEEDS = range(3000, 3004)  # others than the map's
RIGHTS = range(1, 7)  # of 8 tokens


def at(point: Point) -> dict[str, Numbers]:
    """What every option comes to at a point, by name.

    Args:
        point: the regime; its entropy is met as nearly as a number of right tokens does.

    Raises:
        ConfigError: no engines of this world are that far apart.
    """
    right = min(RIGHTS, key=lambda count: abs(math.log(count) - point.entropy))
    regime = Regime(kl=point.kl, flips=point.flips, horizon=point.horizon, right=right, step=point.step)
    engines = fitted(regime, SEEDS)
    if not fits(engines):
        raise ConfigError(
            f"no engines of this world have a KL of {point.kl:g} with flips of {point.flips:g}; the nearest have "
            f"{engines.kl:.2g} and {engines.flip_rate:.2g}: give those, or leave --exact out"
        )
    recipes = [each.recipe(point.group) for each in OPTIONS.values()]
    rated = measured(regime, engines.numerics, SEEDS, recipes, (point.group,), point.updates).rated
    scores = (rated.cosine[:, 0] / (1 + rated.noise[:, 0] / BATCH).sqrt()).mean(0)
    return {
        name: Numbers(
            option=option,
            error=float(rated.error[:, 0, place].mean()),
            cosine=float(rated.cosine[:, 0, place].mean()),
            ess=float(rated.ess[:, place].mean()),
            sequence_ess=float(rated.sequence_ess[:, place].mean()),
            scores=scores[place].tolist(),
        )
        for place, (name, option) in enumerate(OPTIONS.items())
    }
