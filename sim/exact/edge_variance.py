"""The variance of a sampled update where responses are too many to look at one by one.

Exact where a weight is a function of the edge, times products over the tokens before and after it: E‖g‖² is a
recursion (`moments`), and the means of a prompt and reward level are sums over edges. All of it is made of inner
products of scores within a prompt (`scores`). Whatever else is a mean over a sample (`sampled_variance`).

Shapes: X prompts, n reward levels, N contexts, V vocabulary, D directions; one member.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .advantages import AdvantageTable
from .graph import Graph
from .groups import expected_products
from .measurement import Measurement, on_edges
from .moments import Factors, second_moment
from .variance import combined


def exact(measurement: Measurement) -> bool:
    """Whether the variance of an update has a recursion: not where the next few tokens have a kernel of their own."""
    form, world = measurement.form, measurement.scene.world
    return form is not None and form.ahead is None and isinstance(world, Graph) and world.owner is not None


def edge_variance(measurement: Measurement, x: Tensor) -> Tensor:
    """Trace of the covariance of one group's mean update, exact; as `variance.group_variance`.

    Args:
        measurement: of one member, for which `exact` holds.
        x: `[N, V, D]`, from `scores.directions` of its target.
    """
    table, world = measurement.advantages, measurement.scene.world
    assert isinstance(table, AdvantageTable)
    assert isinstance(world, Graph)
    recipe = measurement.recipe
    group = table.levels, table.chance[0], recipe.advantage, recipe.schedule.group_size
    own, cross = expected_products(*group, table.scale_of(0))
    factors, worth = _factors(measurement), own.permute(2, 1, 0)
    if len(factors.ww) == 1:
        worth = worth.sum(0, keepdim=True)
    square = second_moment(world, factors, x, worth, measurement.lengths)
    return combined(measurement, square.sum() / world.prompts, _means(measurement, x), cross)


def _factors(measurement: Measurement) -> Factors:
    """Those of either sign of the advantage, `[2, N, V]`, or of both, `[1, N, V]`, where no clip tells them apart."""
    scene = measurement.scene
    mu, (before, after) = scene.mu_old.logp.exp(), _products(measurement)
    w = [weights.weight.flatten(1) for weights in measurement.edge_weights]
    if torch.equal(w[0], -w[1]):
        w = w[:1]

    def mean(*of: Tensor | None) -> Tensor:
        product = torch.ones_like(w[0])
        for factor in of:
            product = product if factor is None else product * factor
        return mu * on_edges(scene, product)

    def signed(*of: Tensor | None) -> Tensor:
        return torch.cat([mean(one, *of) for one in w])

    return Factors(
        hh=mean(after, after).expand(len(w), -1, -1),
        bh=mean(before, after).expand(len(w), -1, -1),
        bb=mean(before, before).expand(len(w), -1, -1),
        wh=signed(after),
        wb=signed(before),
        ww=torch.cat([mean(one, one) for one in w]),
    )


def _products(measurement: Measurement) -> tuple[Tensor | None, Tensor | None]:
    """What a token gives to those after it and to those before it, `[1, N V]` or of every reading; None is 1."""
    form = measurement.form
    assert form is not None
    if not form.product:
        return None, None
    before, after = measurement.token_ratios(form.before), measurement.token_ratios(form.after)
    if form.masked:
        keep = measurement.edge_weights[0].kept.double().flatten(1)
        before, after = before * keep, after * keep
    return before, after


def _means(measurement: Measurement, x: Tensor) -> Tensor:
    """`variance.level_means` of each prompt, level and sign, in directions, `[X, n, 2, D]`."""
    scene, world = measurement.scene, measurement.scene.world
    assert isinstance(world, Graph)
    assert world.owner is not None
    levels = len(world.levels)
    each = torch.eye(levels, dtype=torch.float64)[None, :, :, None].expand(1, -1, -1, world.prompts)
    passed = measurement.passed(each)[0] * scene.mu_old.logp.exp()
    weights = torch.cat([on_edges(scene, of.weight) for of in measurement.edge_weights])
    of_context = torch.einsum("nsv,asv,svd->snad", passed, weights, x)
    means = torch.zeros(world.prompts, *of_context.shape[1:], dtype=torch.float64)
    return means.index_add_(0, world.owner, of_context)
