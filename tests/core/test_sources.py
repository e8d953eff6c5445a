"""Every recipe with a source against numbers worked out by hand from the source's rule.

Two responses, of 2 and 3 tokens. Their ratios, and the products that the longer spans take:

                   first           second
    theta/old      6    0.9        1.1   0.588   0.65      products  5.4    0.42042
    old/mu         8    1          0.6   2.5     1                   8      1.5
    theta/mu      48    0.9        0.66  1.47    0.65                43.2   0.63063
    theta - mu    47/64 -0.05     -0.17  0.094  -0.175

Each recipe meets them with advantages +1, -1 and with -1, +1. A token mean divides by (2 + 3) / 2 = 2.5, a mean over
each response by 2 and by 3.
"""

from math import cosh, exp, log, sqrt

import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import token_weights
from firstorder.core.settings import toml

RECIPES = {name: toml.build(Recipe, toml.read(name)) for name in toml.shipped()}
RUNNABLE = {name: recipe for name, recipe in RECIPES.items() if not recipe.about.unsupported}
MEAN = 2.5

MU = [[1 / 64, 0.5], [0.5, 0.2, 0.5]]
OLD = [[1 / 8, 0.5], [0.3, 0.5, 0.5]]
THETA = [[3 / 4, 0.45], [0.33, 0.294, 0.325]]


def divided(rows, by):
    return [[w / by for w in row] for row in rows]


# MiniRL, eq. (7): theta/mu, dropped where theta/old > 1.27 and A > 0 (6) or < 0.8 and A < 0 (0.588, 0.65)
MINIRL = [[0, 0.9], [-0.66, 0, 0]], [[-48, -0.9], [0.66, 1.47, 0.65]]
# PPO: theta/old, dropped above 1.2 (1.28 for DAPO) where A > 0 and below 0.8 where A < 0
PPO = [[0, 0.9], [-1.1, 0, 0]], [[-6, -0.9], [1.1, 0.588, 0.65]]
# DPPO: dropped where the divergence from mu exceeds its bound and A pushes on: |theta - mu| is 47/64, 0.05, 0.17,
# 0.094, 0.175 against 0.15, so that 0.2 would have kept two more; the binary KLs are 1.254, 0.005, 0.061, 0.023, 0.065
DPPO = [[0, 0.9], [0, -1.47, 0]], [[-48, -0.9], [0.66, 1.47, 0.65]]
EVERY = [[48, 0.9], [-0.66, -1.47, -0.65]], [[-48, -0.9], [0.66, 1.47, 0.65]]

EXPECTED = {
    "reinforce": ([[1, 1], [-1, -1, -1]], [[-1, -1], [1, 1, 1]]),
    "reinforce-is": ([[43.2] * 2, [-0.63063] * 3], [[-43.2] * 2, [0.63063] * 3]),  # the sequence ratios
    "minirl": MINIRL,
    "minirl-no-clip": EVERY,
    "minirl-no-is": PPO,  # MiniRL's mask on theta/old, with 1.27 for 1.2
    "minirl-length-norm": ([[0, 0.45], [-0.22, 0, 0]], [[-24, -0.45], [0.22, 0.49, 0.65 / 3]]),
    "minirl-tis": ([[0, 0.9], [-0.66, 0, 0]], [[-5, -0.9], [0.66, 1.47, 0.65]]),  # min(48, 5)
    "ppo-clip": [divided(rows, MEAN) for rows in PPO],
    "dapo": [divided(rows, MEAN) for rows in PPO],
    "grpo": ([[0, 0.45], [-1.1 / 3, 0, 0]], [[-3, -0.45], [1.1 / 3, 0.196, 0.65 / 3]]),
    "dr-grpo": [divided(rows, 1024) for rows in PPO],  # the token budget
    # both sequence ratios, 2.32 and 0.75, lie outside 0.9997 to 1.0004 on the side that the first signs push to
    "gspo": ([[0, 0], [0, 0, 0]], [[-sqrt(5.4) / 2] * 2, [0.42042 ** (1 / 3) / 3] * 3]),
    # the ratio itself, held at 5
    "cispo": ([[2, 0.36], [-0.44, -0.2352, -0.26]], [[-2, -0.36], [0.44, 0.2352, 0.26]]),
    # PPO's, times min(old/mu, 2) = 2, 1, 0.6, 2, 1
    "tis": ([[0, 0.36], [-0.264, 0, 0]], [[-4.8, -0.36], [0.264, 0.4704, 0.26]]),
    # PPO's, times old/mu within 0.5 to 5: the 8 goes
    "icepop": ([[0, 0.45], [-0.22, 0, 0]], [[0, -0.45], [0.22, 0.49, 0.65 / 3]]),
    # PPO's, times old/mu
    "decoupled-ppo": ([[0, 0.36], [-0.264, 0, 0]], [[-19.2, -0.36], [0.264, 0.588, 0.26]]),
    "dppo-tv": DPPO,
    "dppo-kl": DPPO,
    # a sequence ratio above 2 drops the first response; the second weighs by its own
    "mis": ([[0, 0], [-0.63063] * 3], [[0, 0], [0.63063] * 3]),
    # geometric old/mu = √8 and 1.5^(1/3), both far from 0.999 to 1.001
    "mis-geometric": ([[0, 0], [0, 0, 0]], [[0, 0], [0, 0, 0]]),
    "minpro": ([[48, 43.2], [-0.66, -0.9702, -0.429]], [[-48, -43.2], [0.66, 0.9702, 0.429]]),
    "nfpo": ([[43.2, 0.9], [-0.9702, -0.9555, -0.65]], [[-43.2, -0.9], [0.9702, 0.9555, 0.65]]),
    # prefixes 48, 43.2 and 0.66, 0.9702, 0.63063 against exp(-0.025 √t) = 0.975, 0.965, 0.958 and exp(0.05 √t) = 1.051,
    # 1.073: 0.9702 passes at t = 2 and would not at t = 1; where A < 0 the upper bound drops 48 and 43.2 as well
    "ctpo": ([[0, 0], [0, -0.9702 / MEAN, 0]], [[0, 0], [0.66 / MEAN, 0.9702 / MEAN, 0.63063 / MEAN]]),
    # W = 43.2 and 0.63063: W² exp(3 (1 - W)) where A > 0, W³ exp(2 (1 - W)) where A < 0
    "vespo": (
        [[43.2**2 * exp(-126.6) / MEAN] * 2, [-(0.63063**3) * exp(0.73874) / MEAN] * 3],
        [[-(43.2**3) * exp(-84.4) / MEAN] * 2, [0.63063**2 * exp(1.10811) / MEAN] * 3],
    ),
    # first signs: log² of 48, 0.66, 0.65 push on, all above the budget, so τ = 0.2 and the bounds stay at 0.7 and 1.5;
    # then log² of 0.9 and 1.47, 0.0111 and 0.1484, of which 0.0111 + τ² = 2 · 0.04 makes exp τ = 1.30, below 1.5
    "m2po": ([[0, 0.36], [0, -0.588, 0]], [[-19.2, -0.36], [0.264, 0.588, 0.26]]),
    # log 6 is held at 0.4, log 0.588 and log 0.65 at -0.4, and have no gradient; all others enter as they are
    "gmpo": (
        [[0, exp((0.4 + log(0.9)) / 2) / 2], [-exp((log(1.1) - 0.8) / 3) / 3, 0, 0]],
        [[-sqrt(5.4) / 2] * 2, [0.42042 ** (1 / 3) / 3] * 3],
    ),
    # as GMPO, on 6 · 0.9, 0.9 and 1.1 · max(0.5, 0.8), 0.588, 0.65
    "rspo": (
        [[0, exp((0.4 + log(0.9)) / 2) / 2], [-exp((log(0.88) - 0.8) / 3) / 3, 0, 0]],
        [[-sqrt(5.4 * 0.9) / 2] * 2, [(0.88 * 0.588 * 0.65) ** (1 / 3) / 3] * 3],
    ),
    "trm": ([[48, 0.9], [0, 0, 0]], [[-48, -0.9], [0, 0, 0]]),
    "trm-avg": ([[48, 0.9], [0, 0, 0]], [[-48, -0.9], [0, 0, 0]]),
}
EXPECTED |= {
    # PPO's, and 6 where A < 0, above 3
    "ppo-dual-clip": ([[0, 0.36], [-0.44, 0, 0]], [[0, -0.36], [0.44, 0.2352, 0.26]]),
    # r / cosh²(τ (r - 1) / 2), τ = 1 where A > 0 and 1.05 where A < 0, over 2 and 3 tokens
    "sapo": (
        [
            [r * cosh((r - 1) / 2) ** -2 / 2 for r in (6, 0.9)],
            [-r * cosh(1.05 * (r - 1) / 2) ** -2 / 3 for r in (1.1, 0.588, 0.65)],
        ],
        [
            [-r * cosh(1.05 * (r - 1) / 2) ** -2 / 2 for r in (6, 0.9)],
            [r * cosh((r - 1) / 2) ** -2 / 3 for r in (1.1, 0.588, 0.65)],
        ],
    ),
    # PPO's, times old/mu = 8, 1, 0.6, 2.5, 1 held at 2; none is below 0.5
    "tis-two-sided": ([[0, 0.36], [-0.264, 0, 0]], [[-4.8, -0.36], [0.264, 0.4704, 0.26]]),
    # over the mean of 2, 1, 0.6, 2, 1
    "tis-mean-one": (
        [[0, 0.36 / 1.32], [-0.2, 0, 0]],
        [[-4.8 / 1.32, -0.36 / 1.32], [0.2, 0.4704 / 1.32, 0.26 / 1.32]],
    ),
    # without the mean, and without both responses, √8 and 1.5^(1/3)
    "tis-rejection-geometric": ([[0, 0], [0, 0, 0]], [[0, 0], [0, 0, 0]]),
    # and without those of a mean of old/mu - 1 - log(old/mu) above 0.01: (7 - log 8) / 2, (1.1 - log 1.5) / 3
    "tis-rejection-k3": ([[0, 0], [0, 0, 0]], [[0, 0], [0, 0, 0]]),
    # GRPO's; where A < 0 the mean of log mu/theta is -log(43.2) / 2 and -log(0.63063) / 3 = 0.154, both below 0.5
    "opsm": ([[0, 0.45], [-1.1 / 3, 0, 0]], [[-3, -0.45], [1.1 / 3, 0.196, 0.65 / 3]]),
    # one turn each: √5.4 and 0.42042^(1/3) = 0.749 are outside 0.8 to 1.2 on the side that the first signs push to
    "turn-ppo": ([[0, 0], [0, 0, 0]], [[-sqrt(5.4) / MEAN] * 2, [0.42042 ** (1 / 3) / MEAN] * 3]),
}
EXPECTED |= {"ppo-critic": EXPECTED["ppo-clip"], "keep-routing": MINIRL, "minirl-critic": MINIRL}
EXPECTED |= {"reinforce-n64": EXPECTED["reinforce"]}
# at 0.2 only the first token is too far, |3/4 - 1/64|
EXPECTED |= {"dppo-tv-squared": ([[0, 0.9], [-0.66, -1.47, -0.65]], [[-48, -0.9], [0.66, 1.47, 0.65]])}
READ = {
    "rspo": {"router_shift": [[log(10 / 9), 0.0], [log(2), 0.0, 0.0]]},
    "trm": {"kl_mu": [[0.04, 0.0], [0.06, 0.0, 0.0]]},  # the largest against 0.05
    "trm-avg": {"kl_mu": [[0.0012, 0.0004], [0.003, 0.0004, 0.0004]]},  # means 0.0008 and 0.00127 against 0.001
}
# group-standardised rewards: GRPO's, and those of the methods laid over it
SPREAD = {"tis-two-sided", "tis-mean-one", "tis-rejection-geometric", "tis-rejection-k3", "sapo", "opsm"}
SPREAD |= {"grpo", "dapo", "gspo", "cispo", "tis", "icepop", "decoupled-ppo", "m2po", "ctpo", "gmpo", "rspo", "vespo"}
SPREAD |= {"grpo-kl", "grpo-entropy"}


def padded(rows):
    return torch.tensor([[*row, *[0.0] * (3 - len(row))] for row in rows], dtype=torch.float64)


def batch(signs, **read):
    mask = torch.tensor([[True, True, False], [True, True, True]])
    logs = {
        f"logp_{name}": torch.where(mask, padded(p).log(), 0.0)
        for name, p in {"mu": MU, "old": OLD, "theta": THETA}.items()
    }
    given = {name: padded(rows) for name, rows in read.items()}
    return TokenStats(**logs, mask=mask, advantage=torch.tensor(signs, dtype=torch.float64), **given)


def method(recipe):
    return recipe.ratio, recipe.correction, recipe.rejection, recipe.clip, recipe.aggregation


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_recipe_weighs_tokens_as_its_source_does(name):
    for signs, expected in zip(([1.0, -1.0], [-1.0, 1.0]), EXPECTED[name], strict=True):
        found = token_weights(batch(signs, **READ.get(name, {})), RECIPES[name]).weight
        torch.testing.assert_close(found, padded(expected), rtol=1e-12, atol=0.0 if name == "vespo" else 1e-14)


def test_opsm_drops_a_response_that_lost_and_that_mu_likes_more():
    recipe = RECIPES["opsm"].with_({"rejection.high": 0.15})
    found = token_weights(batch([1.0, -1.0]), recipe).weight
    torch.testing.assert_close(found, padded([[0, 0.45], [0, 0, 0]]))


@pytest.mark.parametrize("name", sorted(RUNNABLE))
def test_every_recipe_is_one_of_these_methods(name):
    # a grid or a replay mode changes no weight of a token whose log-probs are given
    known = [other for other in EXPECTED if method(RECIPES[other]) == method(RECIPES[name])]
    assert known
    assert RECIPES[name].about.source
    assert RECIPES[name].advantage.std == (name in SPREAD)
