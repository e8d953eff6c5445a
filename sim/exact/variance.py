"""The exact variance of a recipe's sampled update, beside its bias.

The estimator is the mean over one group: G responses of one prompt, the prompt drawn at random. With g_i the update
of response i,

    Var = E‖(1/G) Σ_i g_i‖² - ‖u‖²
        = (1/G) E‖g_i‖² + (1 - 1/G) E⟨g_i, g_j⟩ - ‖u‖²

where responses of a group are independent given the prompt except through the baseline that they share: g = A⁺ g₊ +
A⁻ g₋, and the cross term needs the mean of g± over the responses of each reward level, which is two VJPs a level and
prompt. A critic is shared by all, so g has one part, known from the response. The first term needs the gradient of
every response, which is one padded pass with the responses on the ensemble axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core import progress
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.surrogate import token_weights
from firstorder.sim.config import Sim
from firstorder.sim.model.policy import Weights, leaves, load, trainable
from firstorder.sim.sampling.sequences import score

from .forward import Routes, along
from .groups import expected_products
from .scene import Scene, token_stats
from .tree import episodes, responses
from .updates import advantage_table, direction, reward_levels, signed_weights

CHUNK = 256  # responses whose gradients are held at once


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The update of a response as a sum over S parts, g = Σ_s a_s g_s with at most one a_s other than 0.

    Args:
        weights: `[S, B, T]`, the token weights of g_s.
        level: int64 `[B]`, which of n levels a response is of: its a_s have the moments of that level.
        own: `[X, n, S]`, E[a_s²] for X prompts.
        pair: `[X, n S, n S]`, E[a_s a_s'] of two responses of a group.
    """

    weights: Tensor
    level: Tensor
    own: Tensor
    pair: Tensor


def parts(scene: Scene, recipe: Recipe) -> Parts:
    """A⁺ g₊ + A⁻ g₋ by reward level over a group; one part, with its advantages in it, under a perfect critic."""
    stats = token_stats(scene, recipe)
    if recipe.has_critic:
        plus, minus = advantage_table(scene, recipe).of(scene)
        weights = token_weights(stats.with_advantage(plus - minus), recipe).weight
        one = torch.ones(len(scene.tree.prompts), 1, 1, dtype=torch.float64)
        return Parts(weights=weights, level=torch.zeros_like(scene.tree.prompt), own=one, pair=one)
    levels, chance = reward_levels(scene)
    own, pair = expected_products(levels, chance[0], recipe.advantage, recipe.schedule.group_size)
    up, down = signed_weights(scene, stats, recipe, advantage_table(scene, recipe))
    level = torch.searchsorted(levels, scene.rewards)
    return Parts(weights=torch.cat([up.weight, down.weight]), level=level, own=own, pair=pair)


def group_variance(scene: Scene, recipe: Recipe, sim: Sim, u: Tensor) -> Tensor:
    """Trace of the covariance of one group's mean update, a scalar; for a scene of one member.

    Args:
        scene: with the recipe's target.
        recipe: the method; G is `schedule.group_size`.
        sim: the sizes.
        u: `[1, P]`, the expected update.
    """
    found, size = parts(scene, recipe), recipe.schedule.group_size
    norms = response_norms(scene, recipe, sim, found.weights)
    a = found.own[scene.tree.prompt, found.level]  # [B, S] of E[a_s²]
    square = (scene.measure[0] * (a * norms).sum(-1)).sum()
    means = level_means(scene, recipe, found)  # [X, n, S, P], measure of the prompt included
    flat = means.flatten(1, 2)
    cross = (torch.einsum("xap,xbp->xab", flat, flat) * found.pair).sum() * len(flat)
    return square / size + (1 - 1 / size) * cross - u.square().sum()


def level_means(scene: Scene, recipe: Recipe, found: Parts) -> Tensor:
    """Σ_{y of prompt and level} μ(y)/X · g_s(y) for every prompt, level and part, `[X, n, S, P]`."""
    prompts, levels, count = found.own.shape
    rows = []
    for prompt in range(prompts):
        for level in range(levels):
            inside = ((scene.tree.prompt == prompt) & (found.level == level)).double()
            share = (scene.measure * inside)[..., None]
            rows += [direction(scene, recipe.router_replay.mode, share * w)[0] for w in found.weights]
    return torch.stack(rows).view(prompts, levels, count, -1)


def response_norms(scene: Scene, recipe: Recipe, sim: Sim, weights: Tensor) -> Tensor:
    """‖g_s‖² of every response, `[B, S]`, for the token weights `[S, B, T]` of its parts."""
    replay = scene.replay(recipe.router_replay.mode)
    rows = []
    for start in progress.steps("variance", range(0, len(scene.tree.path), CHUNK)):
        cut = slice(start, start + CHUNK)
        count = len(scene.tree.path[cut])
        copies = leaves({name: w.expand(count, *w.shape[1:]) for name, w in scene.weights.items()})
        logp = _responses(scene, sim, copies, replay, cut)
        parameters = list(trainable(copies).values())
        norms = []
        for weight in weights[:, cut]:
            grads = torch.autograd.grad((weight * logp).sum(), parameters, retain_graph=True, materialize_grads=True)
            norms.append(sum((g.square().flatten(1).sum(-1) for g in grads), torch.zeros(())))
        rows.append(torch.stack(norms, dim=-1))
    return torch.cat(rows)


def _responses(scene: Scene, sim: Sim, copies: Weights, replay: Routes | None, cut: slice) -> Tensor:
    """log π_θ of every token of a chunk of responses, each on its own copy of the weights, `[C, T]`."""
    tree = responses(scene.tree, cut)
    model = load(copies, scene.pi.repeat(len(tree.path)), sim)
    given = None if replay is None else along(replay, tree)[0][:, None]
    logp = score(model, episodes(tree).tokens[:, None], given).logp[:, 0, tree.task.layout.places]
    return torch.where(tree.mask, logp, 0.0)
