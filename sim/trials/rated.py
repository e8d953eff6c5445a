"""What many recipes come to on one scene: bias, variance and effective sample size of each, all exact.

With u the expected update of a recipe, g the gradient of the natural target and V the variance of the mean update of
one group of G responses, a mini-batch of B groups has

    cos_B = u·g / (‖g‖ sqrt(‖u‖² + V/B)) = cosine / sqrt(1 + noise/B),      noise = V / ‖u‖²

the expected inner product of a sampled update with the direction of g over its root mean square length: bias and
variance in one number.

Shapes: M members, X prompts, L reward levels, D = N V edges of all contexts, E edges of a prompt, O recipes, K group
sizes, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.method.recipe import Advantage, Recipe
from firstorder.sim.exact.groups import expected_parts, expected_products
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.pairs import Moments
from firstorder.sim.exact.scene import Mode, Scene
from firstorder.sim.exact.scores import edge_scores


@dataclass(frozen=True, kw_only=True)
class Rated:
    """Of each recipe, `[O, M]`, the first three for each group size, `[K, O, M]`.

    Args:
        error: min_c ‖c u - g‖ / ‖g‖, g of the natural target.
        cosine: of u and g.
        noise: V / ‖u‖², the groups of a mini-batch at which variance weighs as much as the expected update.
        ess: effective share of the tokens, (E w)² / E w² of the sizes of their weights, A = 1 and -1 equally likely.
        sequence_ess: effective share of the responses under the product of π_θ/μ, with the recipe's replay.
    """

    error: Tensor
    cosine: Tensor
    noise: Tensor
    ess: Tensor
    sequence_ess: Tensor


@dataclass(frozen=True, kw_only=True)
class Group:
    """Moments of the advantages of a group, by prompt, reward level and sign: `mean` `[M, X, L, 2]`, `own` the same of
    their squares, `cross` `[M, X, 2L, 2L]` of two responses; and `size`, G."""

    mean: Tensor
    own: Tensor
    cross: Tensor
    size: int


@dataclass(frozen=True, kw_only=True)
class Products:
    """The scores of a target, ∇ log π of every edge, `[M, D, P]`, and their inner products within each prompt,
    `[M, X, E, E]`."""

    scores: Tensor
    gram: Tensor


Groups = dict[bool, list[Group]]
"""For each group size, by whether the advantage is divided by its spread."""


def groups(levels: Tensor, of_mu: Moments, recipes: Sequence[Recipe], sizes: Sequence[int]) -> Groups:
    """The moments of the advantages that the recipes have, under μ_old."""
    rules = {each.advantage.std: each.advantage for each in recipes}
    return {std: [advantages(levels, of_mu.chance, rule, size) for size in sizes] for std, rule in rules.items()}


def advantages(levels: Tensor, chance: Tensor, rule: Advantage, size: int) -> Group:
    """The moments under a chance `[M, X, L]` of each reward level."""
    mean = torch.stack(expected_parts(levels, chance, rule, size), dim=-1)
    own, cross = zip(*(expected_products(levels, one, rule, size) for one in chance), strict=True)
    return Group(mean=mean, own=torch.stack(own), cross=torch.stack(cross), size=size)


def rated(scene: Scene, recipes: Sequence[Recipe], of_mu: Moments, of_groups: Groups) -> Rated:
    """Rate recipes on one scene.

    Args:
        scene: of a graph, with the replay modes that they need.
        recipes: with a form by edge, a group baseline, and no length in it.
        of_mu: the moments of μ_old.
        of_groups: from `groups`.
    """
    measured = [Measurement(scene=scene, recipe=each) for each in recipes]
    g = measured[0].natural_gradient
    found: list[tuple[Tensor, ...] | None] = [None] * len(measured)
    for mode in dict.fromkeys(one.mode for one in measured):
        places = [place for place, one in enumerate(measured) if one.mode == mode]
        mine = [measured[place] for place in places]
        rates = zip(*_rate(mine, _products(scene, mode), g, of_mu, of_groups), strict=True)
        for place, rate in zip(places, rates, strict=True):
            found[place] = (*rate, mine[0].effective_share)
    cosine, noise, ess, sequence = zip(*(each for each in found if each is not None), strict=True)
    cosines = torch.stack(cosine, dim=1)
    return Rated(
        error=(1 - cosines.square()).clamp(min=0).sqrt(),
        cosine=cosines,
        noise=torch.stack(noise, dim=1),
        ess=torch.stack(ess),
        sequence_ess=torch.stack(sequence),
    )


def _products(scene: Scene, mode: Mode) -> Products:
    scores = edge_scores(scene, mode, torch.arange(scene.world.contexts)).flatten(1, 2)
    apart = scores.view(len(scores), scene.world.prompts, -1, scores.shape[-1])
    return Products(scores=scores, gram=apart @ apart.transpose(-1, -2))


def _rate(
    measured: Sequence[Measurement], products: Products, g: Tensor, of_mu: Moments, of_groups: Groups
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine and noise `[O, K, M]` and ESS `[O, M]` of the recipes of one replay."""
    prompts, scene = of_mu.chance.shape[1], measured[0].scene
    share = (scene.share[..., None] * scene.mu_old.logp.exp()).flatten(1)
    inside = products.gram[:, :, None] * of_mu.pairs
    updates, seconds, shares = [], [], []
    for one in measured:
        w = torch.stack([weights.weight[..., 0] for weights in one.edge_weights], dim=1)  # [M, 2, D]
        mine = w.view(len(w), 2, prompts, -1).transpose(1, 2)  # [M, X, 2, E]
        met = ((mine[:, :, None] @ inside) * mine[:, :, None]).sum(-1)  # [M, X, L, 2]
        means = (of_mu.single[:, :, :, None] * mine[:, :, None]).flatten(2, 3)  # [M, X, 2L, E]
        between = means @ products.gram @ means.transpose(-1, -2)
        for group in of_groups[one.recipe.advantage.std]:
            updates.append((group.mean.flatten(2)[..., None] * means).sum(2).flatten(1) / prompts)
            square, shared = (group.own * met).sum((1, 2, 3)), (group.cross * between).sum((1, 2, 3))
            seconds.append((square / group.size + (1 - 1 / group.size) * shared) / prompts)
        first, squares = ((share[:, None] * w.abs() ** k).sum((1, 2)) / 2 for k in (1, 2))
        shares.append(first.square() / squares)
    u = torch.stack(updates, dim=1) @ products.scores  # [M, O K, P]
    uu, ug = u.square().sum(-1), (u * g[:, None]).sum(-1)
    cosine = (ug / (uu.sqrt() * g.norm(dim=-1, keepdim=True))).T
    noise = torch.stack(seconds) / uu.T - 1
    shape = len(measured), -1, len(g)
    return cosine.reshape(shape), noise.reshape(shape), torch.stack(shares)
