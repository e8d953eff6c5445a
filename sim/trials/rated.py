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
from firstorder.sim.exact.graph import Graph
from firstorder.sim.exact.groups import expected_parts, expected_products
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.scene import Mode, Scene
from firstorder.sim.model.policy import leaves, load, step, trainable

from .moments import Moments


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
    """Inner products of the scores of a target: with one another, `gram` `[M, D, D]`, and with g, `along` `[M, D]`."""

    gram: Tensor
    along: Tensor


Groups = dict[bool, list[Group]]
"""For each group size, by whether the advantage is divided by its spread."""


def groups(levels: Tensor, of_mu: Moments, recipes: Sequence[Recipe], sizes: Sequence[int]) -> Groups:
    """The moments of the advantages that the recipes have, under μ_old."""
    rules = {each.advantage.std: each.advantage for each in recipes}
    return {std: [_group(levels, of_mu.chance, rule, size) for size in sizes] for std, rule in rules.items()}


def _group(levels: Tensor, chance: Tensor, rule: Advantage, size: int) -> Group:
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
    modes = {one.mode: one for one in measured}
    g = measured[0].natural_gradient
    products = {mode: _products(scene, one, g) for mode, one in modes.items()}
    found = [_rate(one, products[one.mode], g.norm(dim=-1), of_mu, of_groups) for one in measured]
    cosine, noise, ess = (torch.stack(column, dim=-2) for column in zip(*found, strict=True))
    sequence = {mode: one.effective_share for mode, one in modes.items()}
    return Rated(
        error=(1 - cosine.square()).clamp(min=0).sqrt(),
        cosine=cosine,
        noise=noise,
        ess=ess,
        sequence_ess=torch.stack([sequence[one.mode] for one in measured]),
    )


def _products(scene: Scene, one: Measurement, g: Tensor) -> Products:
    scores = _scores(scene, one.mode)
    return Products(gram=scores @ scores.transpose(1, 2), along=(scores @ g[..., None])[..., 0])


def _scores(scene: Scene, mode: Mode) -> Tensor:
    """∇ log π_θ of every edge, `[M, D, P]`: each context on a copy of the weights, so that a token takes one pass."""
    world, replay = scene.world, scene.replay(mode)
    assert isinstance(world, Graph)
    members, contexts, vocab = scene.mu_old.logp.shape
    copies = leaves({name: w.repeat_interleave(contexts, 0) for name, w in scene.weights.items()})
    parameters = list(trainable(copies).values())
    model = load(copies, scene.pi.repeat(contexts), world.task.sim)
    features, keys = (x[:, None].repeat(members, *[1] * x.ndim) for x in (world.table.features, world.table.keys))
    given = None if replay is None else replay.at(lambda routes: routes.contexts.flatten(0, 1)[:, None])
    logp = step(model, None, features, keys, given).logp[:, 0]
    rows = [torch.autograd.grad(logp[:, v].sum(), parameters, retain_graph=True) for v in range(vocab)]
    each = torch.stack([torch.cat([slope.flatten(1) for slope in row], dim=1) for row in rows], dim=1)
    return each.view(members, contexts * vocab, -1)


def _rate(
    one: Measurement, products: Products, length: Tensor, of_mu: Moments, of_groups: Groups
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine and noise `[K, M]` and ESS `[M]` of one recipe."""
    w = torch.stack([weights.weight[..., 0] for weights in one.edge_weights], dim=1)  # [M, 2, D]
    prompts = of_mu.chance.shape[1]
    mine, gram = w.unflatten(-1, (prompts, -1)).transpose(1, 2), _inside(products.gram, prompts)
    met = torch.einsum("mxse,mxlef,mxsf->mxls", mine, gram[:, :, None] * of_mu.pairs, mine)
    means = (of_mu.single[:, :, :, None] * mine[:, :, None]).flatten(2, 3)  # [M, X, 2L, E]
    between = means @ gram @ means.transpose(-1, -2)
    cosines, noises = [], []
    for group in of_groups[one.recipe.advantage.std]:
        a = torch.einsum("mxa,mxae->mxe", group.mean.flatten(2), means).flatten(1) / prompts
        uu, ug = torch.einsum("md,mde,me->m", a, products.gram, a), (a * products.along).sum(-1)
        square, shared = ((group.own * met).sum((1, 2, 3)), (group.cross * between).sum((1, 2, 3)))
        second = (square / group.size + (1 - 1 / group.size) * shared) / prompts
        cosines.append(ug / (uu.sqrt() * length))
        noises.append(second / uu - 1)
    share = (one.scene.share[..., None] * one.scene.mu_old.logp.exp()).flatten(1)
    first, second = (torch.einsum("md,msd->m", share, w.abs() ** k) / 2 for k in (1, 2))
    return torch.stack(cosines), torch.stack(noises), first.square() / second


def _inside(gram: Tensor, prompts: int) -> Tensor:
    """The blocks of a Gram matrix within each prompt, `[M, X, E, E]`."""
    size = gram.shape[-1] // prompts
    apart = gram.view(len(gram), prompts, size, prompts, size)
    return torch.stack([apart[:, x, :, x] for x in range(prompts)], dim=1)
