"""The exact variance of a recipe's sampled update, beside its bias.

The estimator is the mean over one group: G responses of one prompt, the prompt drawn at random. With g_i the update
of response i, and g = A⁺ g₊ + A⁻ g₋,

    Var = E‖(1/G) Σ_i g_i‖² - ‖u‖²
        = (1/G) E‖g_i‖² + (1 - 1/G) E⟨g_i, g_j⟩ - ‖u‖²

where responses of a group are independent given the prompt except through the baseline that they share. The cross
term needs the mean of g± over the responses of each reward level, which is two VJPs a level and prompt; the first
term needs the gradient of every response, which is one padded pass with the responses on the ensemble axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.recipe import Recipe

from .config import Sim
from .engine import Routes, along
from .exact import direction, reward_levels, signed_weights
from .groups import expected_products
from .policy import Weights, load
from .scene import Scene, token_stats
from .sequences import score
from .tree import episodes, responses

CHUNK = 256  # responses whose gradients are held at once


def group_variance(scene: Scene, recipe: Recipe, sim: Sim, u: Tensor) -> Tensor:
    """Trace of the covariance of one group's mean update, a scalar; for a scene of one member.

    Args:
        scene: with the recipe's target.
        recipe: the method; G is `schedule.group_size`.
        sim: the sizes.
        u: `[1, P]`, the expected update.
    """
    levels, chance = reward_levels(scene)
    rank = torch.searchsorted(levels, scene.rewards)
    size = recipe.schedule.group_size
    own, pair = expected_products(levels, chance[0], recipe.advantage, size)
    up, down = signed_weights(token_stats(scene, recipe), recipe)
    norms = response_norms(scene, recipe, sim, up[0], down[0])  # [B, 2]
    a = own[scene.tree.prompt, rank]  # [B, 2] of E[A⁺²], E[A⁻²]; A⁺A⁻ = 0
    square = (scene.measure[0] * (a * norms).sum(-1)).sum()
    means = level_means(scene, recipe, up, down)  # [X, n, 2, P], measure of the prompt included
    x = len(scene.tree.prompts)
    flat = means.flatten(1, 2)  # [X, 2n, P]
    cross = (torch.einsum("xap,xbp->xab", flat, flat) * pair).sum() * x
    return square / size + (1 - 1 / size) * cross - u.square().sum()


def level_means(scene: Scene, recipe: Recipe, up: Tensor, down: Tensor) -> Tensor:
    """Σ_{y of prompt and level} μ(y)/X · g±(y) for every prompt and reward level, `[X, n, 2, P]`."""
    levels, chance = reward_levels(scene)
    rank = torch.searchsorted(levels, scene.rewards)
    rows = []
    for prompt in range(chance.shape[1]):
        for level in range(chance.shape[2]):
            inside = ((scene.tree.prompt == prompt) & (rank == level)).double()
            share = (scene.measure * inside)[..., None]
            pair = [direction(scene, recipe.router_replay.mode, share * w)[0] for w in (up, down)]
            rows.append(torch.stack(pair))
    return torch.stack(rows).view(*chance.shape[1:], 2, -1)


def response_norms(scene: Scene, recipe: Recipe, sim: Sim, up: Tensor, down: Tensor) -> Tensor:
    """‖g₊‖² and ‖g₋‖² of every response, `[B, 2]`, for token weights `[B, T]` at advantage ±1."""
    replay = {"disabled": None, "R2": scene.old["R2"].routes, "R3": scene.mu_old.routes}[recipe.router_replay.mode]
    parts = []
    for start in range(0, len(scene.tree.path), CHUNK):
        cut = slice(start, start + CHUNK)
        leaves = {n: w.detach().expand(len(scene.tree.path[cut]), *w.shape[1:]) for n, w in scene.weights.items()}
        leaves = {n: w.clone().requires_grad_(n != "bias") for n, w in leaves.items()}
        logp = _responses(scene, sim, leaves, replay, cut)
        trained = [w for w in leaves.values() if w.requires_grad]
        pair = []
        for weight in (up[cut], down[cut]):
            grads = torch.autograd.grad((weight * logp).sum(), trained, retain_graph=True, materialize_grads=True)
            pair.append(sum((g.square().flatten(1).sum(-1) for g in grads), torch.zeros(())))
        parts.append(torch.stack(pair, dim=-1))
    return torch.cat(parts)


def _responses(scene: Scene, sim: Sim, leaves: Weights, replay: Routes | None, cut: slice) -> Tensor:
    """log π_θ of every token of a chunk of responses, each on its own copy of the weights, `[C, T]`."""
    tree = responses(scene.tree, cut)
    model = load(leaves, scene.pi.repeat(len(tree.path)), sim)
    given = None if replay is None else along(replay, tree)[0][:, None]
    logp = score(model, episodes(tree).tokens[:, None], given).logp[:, 0, tree.task.layout.places]
    return torch.where(tree.mask, logp, 0.0)
