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
from firstorder.core.method.surrogate import token_weights
from firstorder.sim.model.policy import Weights, leaves, load, trainable
from firstorder.sim.model.truncation import named
from firstorder.sim.sampling.sequences import score

from .advantages import CriticTable
from .forward import along
from .groups import expected_products
from .measurement import Measurement
from .objectives import direction
from .scene import Scene
from .scores import edge_scores, square_root
from .tree import Tree, episodes
from .world import Responses

CHUNK = 256  # responses whose gradients are held at once


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The update of a response as a sum over S parts, g = Σ_s a_s g_s with at most one a_s other than 0.

    Args:
        weights: `[S, B, T]`, the token weights of g_s.
        level: int64 `[B]`, which of n levels a response is of: its a_s have the moments of that level.
        square: `[X, n, S]`, E[a_s²] for X prompts.
        cross: `[X, n S, n S]`, E[a_s a_s'] of two responses of a group.
    """

    weights: Tensor
    level: Tensor
    square: Tensor
    cross: Tensor


def parts(measurement: Measurement) -> Parts:
    """A⁺ g₊ + A⁻ g₋ by reward level over a group; one part, with its advantages in it, under a perfect critic."""
    batch, recipe, table = measurement.batch, measurement.recipe, measurement.advantages
    scene = batch.scene
    if isinstance(table, CriticTable):
        weights = token_weights(batch.stats.with_advantage(batch.plus - batch.minus), recipe).weight
        one = torch.ones(scene.world.prompts, 1, 1, dtype=torch.float64)
        return Parts(weights=weights, level=torch.zeros_like(scene.responses.prompt), square=one, cross=one)
    group = table.levels, table.chance[0], recipe.advantage, recipe.schedule.group_size
    square, cross = expected_products(*group, table.scale_of(0))
    weights = torch.cat([batch.up.weight, batch.down.weight])
    return Parts(weights=weights, level=table.rank(batch.scene), square=square, cross=cross)


def group_variance(measurement: Measurement) -> Tensor:
    """Trace of the covariance of one group's mean update, a scalar; for a scene of one member.

    G is the recipe's `schedule.group_size`.
    """
    scene, of_response = measurement.scene, parts(measurement)
    norms = response_norms(measurement, of_response.weights)
    a = of_response.square[scene.responses.prompt, of_response.level]  # [B, S] of E[a_s²]
    square = (scene.measure[0] * (a * norms).sum(-1)).sum()
    return combined(measurement, square, level_means(measurement, of_response), of_response.cross)


def combined(measurement: Measurement, square: Tensor, means: Tensor, cross: Tensor) -> Tensor:
    """(1/G) E‖g_i‖² + (1 - 1/G) E⟨g_i, g_j⟩ - ‖u‖².

    Args:
        measurement: with G and u.
        square: E‖g_i‖², of any shape.
        means: `[X, n, S, P]`, of `level_means`.
        cross: `[X, n S, n S]`, of `Parts`.
    """
    size, flat = measurement.recipe.schedule.group_size, means.flatten(1, 2)
    shared = (torch.einsum("xap,xbp->xab", flat, flat) * cross).sum() * len(flat)
    return square / size + (1 - 1 / size) * shared - measurement.update.square().sum()


def level_means(measurement: Measurement, of_response: Parts) -> Tensor:
    """Σ_{y of prompt and level} μ(y)/X · g_s(y) for every prompt, level and part, `[X, n, S, P]`."""
    scene, mode = measurement.scene, measurement.mode
    prompts, levels, count = of_response.square.shape
    means = []
    for prompt in range(prompts):
        for level in range(levels):
            inside = ((scene.responses.prompt == prompt) & (of_response.level == level)).double()
            share = (scene.measure * inside)[..., None]
            means += [direction(scene, mode, share * w)[0] for w in of_response.weights]
    return torch.stack(means).view(prompts, levels, count, -1)


def response_norms(measurement: Measurement, weights: Tensor) -> Tensor:
    """‖g_s‖² of every response of one member, `[B, S]`, for the token weights `[S, B, T]` of its parts."""
    if not measurement.scene.world.task.sim.carries:
        return _looked_up(measurement, weights)
    scene = measurement.scene
    rows = []
    for start in progress.steps("variance", range(0, len(scene.responses), CHUNK)):
        cut = slice(start, start + CHUNK)
        count = len(scene.responses.of(cut))
        copies = leaves({name: w.expand(count, *w.shape[1:]) for name, w in scene.weights.items()})
        logp = _responses(measurement, copies, cut)
        parameters = list(trainable(copies).values())
        norms = []
        for weight in weights[:, cut]:
            slopes = torch.autograd.grad((weight * logp).sum(), parameters, retain_graph=True, materialize_grads=True)
            norms.append(sum((slope.square().flatten(1).sum(-1) for slope in slopes), torch.zeros(())))
        rows.append(torch.stack(norms, dim=-1))
    return torch.cat(rows)


def _looked_up(measurement: Measurement, weights: Tensor) -> Tensor:
    """The same where a policy is a table: the weights of each row's tokens times their scores, prompt by prompt."""
    scene, paths = measurement.scene, measurement.scene.responses
    tree, norms = scene.world, torch.zeros(len(paths), len(weights), dtype=torch.float64)
    assert isinstance(tree, Tree)
    for prompt, reached in enumerate(progress.steps("variance", list(tree.reachable))):
        contexts = reached.nonzero()[:, 0]
        rows, place = torch.unique(tree.place[contexts], return_inverse=True)
        first = torch.full_like(rows, len(contexts)).scatter_reduce(0, place, torch.arange(len(contexts)), "amin")
        scores = edge_scores(scene, measurement.mode, contexts[first])[0].flatten(0, 1)
        x = square_root(scores @ scores.T)
        at = torch.zeros(tree.contexts, dtype=torch.int64).scatter(0, contexts, place)
        mine = (paths.prompt == prompt).nonzero()[:, 0]
        edges = at[paths.contexts[mine]] * tree.vocab + paths.tokens[mine]
        for part, weight in enumerate(torch.where(paths.mask, weights, 0.0)[:, mine]):
            counts = torch.zeros(len(mine), len(x), dtype=torch.float64).scatter_add_(1, edges, weight)
            norms[mine, part] = (counts @ x).square().sum(-1)
    return norms


def _responses(measurement: Measurement, copies: Weights, cut: slice) -> Tensor:
    """log π_θ of every token of a chunk of responses, each on its own copy of the weights, `[C, T]`."""
    scene, replay = measurement.scene, measurement.scene.replay(measurement.mode)
    tree, part = scene.world, scene.responses.of(cut)
    assert isinstance(tree, Tree)
    model = load(copies, scene.pi.repeat(len(part)), tree.task.sim)
    given = None if replay is None else replay.at(lambda rows: along(rows, tree, part)[0][:, None])
    tokens = episodes(tree, part).tokens[:, None]
    logp = score(model, tokens, given, _kept(scene, part, tokens)).logp[:, 0, tree.task.layout.places]
    return torch.where(part.mask, logp, 0.0)


def _kept(scene: Scene, part: Responses, tokens: Tensor) -> Tensor | None:
    """The tokens that π is renormalised over at each of `tokens` `[C, 1, L]`, `[C, 1, L, K]`; None for all."""
    if scene.over is None:
        return None
    tree, ids = scene.world, named(scene.over[0])
    assert ids is not None
    rows = torch.full((*tokens.shape, ids.shape[-1]), -1, dtype=ids.dtype)
    rows[:, 0, tree.task.layout.places] = torch.where(part.mask[..., None], ids[part.contexts], -1)
    return rows
