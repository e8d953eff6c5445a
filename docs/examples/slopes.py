"""The order of the first-order error, with and without Rollout Routing Replay, for one policy of your choice.

Run it with a seed: python docs/examples/slopes.py 7
"""

import sys

import numpy as np

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read
from firstorder.sim.config import Sim
from firstorder.sim.exact.measure import measure

SCALES = (0.1, 0.0316, 0.01, 0.00316, 0.001)


def order(recipe: str, quantity: str, seed: int) -> float:
    """Slope of log(quantity) against log(scale)."""
    method = build(Recipe, read(recipe))
    errors = []
    for scale in SCALES:
        numerics = {"kind": "noise", "scale": scale, "seed": seed}
        errors.append(measure(method, Sim(seed=seed, numerics=numerics))[quantity])
    return float(np.polyfit(np.log(SCALES), np.log(errors), 1)[0])


if __name__ == "__main__":
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    for recipe in ("minirl", "minirl-r3"):
        value, gradient = (order(recipe, name, seed) for name in ("value_error", "gradient_error"))
        print(f"{recipe:10} value error: order {value:.2f}   gradient error: order {gradient:.2f}")
