"""The sampled twin of the exhaustive batch: groups drawn from μ_old, through the same functions.

It serves two purposes: an estimate with an interval for recipes whose weights read the whole batch, where the
exhaustive value is only the limit of large batches; and a check that every exact expectation is what sampling
converges to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.method.advantage import advantage
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import token_weights

from .forward import vjp
from .scene import Scene, token_stats
from .updates import advantage_table, fits


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A sampled estimate with its 95% interval."""

    estimate: float
    low: float
    high: float


def sample_responses(scene: Scene, groups: int, group_size: int, batches: int, generator: torch.Generator) -> Tensor:
    """Indices of sampled responses, int64 `[batches, groups, G]`: a prompt at random, then G responses from μ_old."""
    tree = scene.tree
    count = len(tree.prompts)
    prompt = torch.randint(count, (batches, groups), generator=generator)
    chance = scene.measure[0] * count
    found = torch.empty(batches, groups, group_size, dtype=torch.int64)
    for x in range(count):
        mine = (tree.prompt == x).nonzero()[:, 0]
        wanted = prompt == x
        total = int(wanted.sum()) * group_size
        if total:
            drawn = torch.multinomial(chance[mine], total, replacement=True, generator=generator)
            found[wanted] = mine[drawn].view(-1, group_size)
    return found


def sampled_edges(scene: Scene, recipe: Recipe, picks: Tensor) -> Tensor:
    """Mean token weights of sampled batches, added up on their edges: `[batches, N · V]`.

    Args:
        scene: of one member.
        recipe: the method.
        picks: int64 `[batches, groups, G]`, from `sample_responses`.
    """
    batch = sampled_stats(scene, recipe, picks)
    weight = token_weights(batch, recipe).weight * batch.weights[..., None]
    flat = picks.flatten(1)
    edges = torch.zeros(len(picks), scene.tree.contexts * scene.tree.vocab, dtype=torch.float64)
    edges.scatter_add_(1, scene.tree.path[flat].flatten(1).long(), weight.flatten(1))
    return edges


def sampled_stats(scene: Scene, recipe: Recipe, picks: Tensor) -> TokenStats:
    """Sampled batches as a recipe sees them, `[batches, groups · G, T]`, with their own advantages."""
    full, flat = token_stats(scene, recipe), picks.flatten(1)

    def pick(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[0][flat]

    return replace(
        full,
        logp_theta=full.logp_theta[0][flat],
        logp_old=full.logp_old[0][flat],
        logp_mu=full.logp_mu[0][flat],
        mask=scene.tree.mask[flat],
        advantage=_advantage(scene, recipe, picks),
        measure=None,
        kl_mu=pick(full.kl_mu),
        router_shift=pick(full.router_shift),
        rewards=scene.rewards[flat],
    )


def _advantage(scene: Scene, recipe: Recipe, picks: Tensor) -> Tensor:
    """A of every picked response over its group, or of every token under a perfect critic."""
    if not recipe.has_critic:
        return advantage(scene.rewards[picks], recipe.advantage).flatten(1)
    plus, minus = advantage_table(scene, recipe).of(scene)
    return (plus - minus)[0][picks.flatten(1)]


def sampled_fits(
    scene: Scene, recipe: Recipe, g: Tensor, natural: Tensor, *, blocks: int = 16, batches: int = 16, seed: int = 0
) -> dict[str, Interval]:
    """How a recipe's update at its own minibatch size compares with the gradients, by jackknife over blocks.

    Args:
        scene: of one member.
        recipe: its schedule says how many groups of how many responses make a minibatch.
        g, natural: `[1, P]`, the gradients of its own and of the natural target.
        blocks: independent blocks, one VJP each.
        batches: minibatches averaged within a block.
        seed: of the sampler.

    Returns:
        The comparisons of `exact.fits`, but for the norm of g, which is exact.
    """
    generator = torch.Generator().manual_seed(seed)
    schedule = recipe.schedule
    rows = []
    for _ in range(blocks):
        picks = sample_responses(
            scene, schedule.prompts // schedule.minibatches, schedule.group_size, batches, generator
        )
        edges = sampled_edges(scene, recipe, picks).mean(0).view(1, scene.tree.contexts, scene.tree.vocab)
        rows.append(vjp(scene.target[recipe.router_replay.mode], edges, scene.weights))
    u = torch.cat(rows)
    whole = fits(u.mean(0), g[0], natural[0])
    left_out = [fits((u.sum(0) - one) / (blocks - 1), g[0], natural[0]) for one in u]
    return {
        name: jackknife(value, torch.stack([one[name] for one in left_out]))
        for name, value in whole.items()
        if name != "gradient_norm"
    }


def jackknife(whole: Tensor, left_out: Tensor) -> Interval:
    """Bias-corrected estimate and 95% t interval from leave-one-block-out values `[n]` (Efron and Stein 1981)."""
    from scipy.special import stdtrit  # here, since it takes a third of a second to import

    n = len(left_out)
    pseudo = n * whole - (n - 1) * left_out
    centre = float(pseudo.mean())
    half = float(stdtrit(n - 1, 0.975)) * float(pseudo.std(correction=1)) / n**0.5
    return Interval(estimate=centre, low=centre - half, high=centre + half)
