"""The variance of a sampled update where responses are too many to look at one by one.

The gradient of a response is a sum over its edges, g = Σ_t a w(e_t) ∇ log π(e_t). With the scores of D edges as the
rows of a matrix of singular value decomposition U Σ Wᵀ and x_r = (U Σ)_r,

    ‖g‖² = Σ_r (Σ_t a w(e_t) x_r(e_t))²

so that its expectation is D sums of squares, each a recursion (`World.squares`): exact, at a cost of D · T · S. Where
that is too much, ‖g‖² is averaged over the responses of the sample. The means of a prompt and reward level are exact
in either case.

Shapes: X prompts, n reward levels, N contexts, V vocabulary, P parameters; one member.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from firstorder.core import progress

from .advantages import AdvantageTable
from .edges import vjp
from .groups import expected_products
from .measurement import Measurement, on_edges
from .sampled import Interval, blocks, jackknife
from .variance import combined, response_norms

DIRECTIONS = 1024  # edges whose scores are formed
WORK = 1 << 31  # directions x steps x contexts that take about a minute
AT_ONCE = 1 << 16  # directions x contexts of one recursion


def exact_in_time(measurement: Measurement) -> bool:
    """Whether every direction can be followed in about a minute: not where an edge has many weights."""
    world = measurement.scene.world
    if measurement.scene.readings is not None:
        return False
    edges = world.contexts * world.vocab
    return edges <= DIRECTIONS and edges * world.contexts * world.horizon <= WORK


def edge_variance(measurement: Measurement) -> tuple[Tensor, Interval | None]:
    """As `variance.group_variance`, for an update that is made of edges, and its interval where it is sampled."""
    table = measurement.advantages
    assert isinstance(table, AdvantageTable)
    recipe = measurement.recipe
    group = table.levels, table.chance[0], recipe.advantage, recipe.schedule.group_size
    own, cross = expected_products(*group, table.scale_of(0))
    means = _means(measurement, len(table.levels))
    if measurement.form is not None and not measurement.form.product and exact_in_time(measurement):
        return combined(measurement, _followed(measurement, own), means, cross), None
    norms = _norms(measurement, own)
    found = combined(measurement, norms.mean(), means, cross)
    left_out = [(norms.sum() - norms[part].sum()) / (len(norms) - len(norms[part])) for part in blocks(len(norms))]
    return found, jackknife(found, combined(measurement, torch.stack(left_out), means, cross))


def _followed(measurement: Measurement, own: Tensor) -> Tensor:
    """E‖g‖² over every direction; `own` `[X, n, 2]` is E[a²] of each prompt, level and sign."""
    scene, world = measurement.scene, measurement.scene.world
    shape, size = (world.contexts, world.vocab), world.contexts * world.vocab
    unit = torch.eye(size, dtype=torch.float64).view(size, 1, *shape)
    scores = torch.cat([vjp(measurement.target, one, scene.weights) for one in progress.steps("scores", list(unit))])
    left, scale, _ = torch.linalg.svd(scores, full_matrices=False)
    x = (left * scale).T.reshape(-1, *shape)
    mu, f = scene.mu_old.logp.exp(), measurement.lengths
    total = torch.zeros((), dtype=torch.float64)
    for directions in progress.steps("variance", list(x.split(max(1, AT_ONCE // world.contexts)))):
        for sign, weight in enumerate(measurement.edge_weights):
            squares = world.squares(mu, directions * weight.weight.view(1, *shape), None if f is None else f.square())
            total = total + (squares.sum(0).T * own[:, :, sign]).sum()
    return total / world.prompts


def _norms(measurement: Measurement, own: Tensor) -> Tensor:
    """Σ_s E[a_s²] ‖g_s‖² of every response of the sample, `[B]`."""
    scene, batch, table = measurement.scene, measurement.batch, measurement.advantages
    assert isinstance(table, AdvantageTable)
    moments = own[scene.responses.prompt[0], table.rank(scene)[0]]
    weights = torch.cat([batch.up.weight, batch.down.weight]) * (moments > 0).T[..., None]
    return (moments * response_norms(measurement, weights)).sum(-1)


def _means(measurement: Measurement, levels: int) -> Tensor:
    """`variance.level_means` of each prompt, level and sign, `[X, n, 2, P]`."""
    scene, prompts = measurement.scene, measurement.scene.world.prompts
    passed = _passed(measurement, levels)
    mu, chance = scene.mu_old.logp.exp(), measurement.advantages
    assert isinstance(chance, AdvantageTable)
    worth = torch.stack([chance.plus[0], chance.minus[0]], dim=-1).flatten(0, 1) > 0  # what no advantage reaches is 0
    size = sum(w[0].numel() for w in scene.weights.values() if w.requires_grad)
    means = torch.zeros(prompts * levels, 2, size, dtype=torch.float64)
    for row in progress.steps("means", range(prompts * levels)):
        for sign, weight in enumerate(measurement.edge_weights):
            if worth[row, sign]:
                edges = mu * passed(row // levels, row % levels) * on_edges(scene, weight.weight)
                means[row, sign] = vjp(measurement.target, edges, scene.weights)[0]
    return means.view(prompts, levels, 2, size)


def _passed(measurement: Measurement, levels: int) -> Callable[[int, int], Tensor]:
    """What passes each edge, `[N, V]`, of the responses to a prompt that earn a level.

    Prompts that share no context are followed together, and told apart by where they are.
    """
    prompts, reachable = measurement.scene.world.prompts, measurement.scene.world.reachable
    level = torch.eye(levels, dtype=torch.float64)
    if (reachable.sum(0) <= 1).all():
        together = measurement.passed(level[None, :, :, None].expand(1, -1, -1, prompts))[0]
        return lambda x, n: together[n] * reachable[x, :, None]
    each = torch.einsum("xy,nm->xnmy", torch.eye(prompts, dtype=torch.float64), level)
    apart = measurement.passed(each.reshape(1, prompts * levels, levels, prompts))[0]
    return lambda x, n: apart[x * levels + n]
