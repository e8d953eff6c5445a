"""The variance of a sampled update from a sample of responses, where it has no exact form: unbiased, with intervals.

Every mean of a product of two responses is one over pairs of different responses to a prompt (a U-statistic), so that
no square of a mean of the sample is taken for that of an expectation:

    E⟨g_i, g_j⟩ = Σ_{i≠j} ⟨g_i, g_j⟩ / k(k - 1)        over the k responses to a prompt, then over prompts

Shapes: X prompts, k responses to each, S parts of an update (`variance.Parts`), n reward levels, D directions,
P parameters; one member.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .accuracy import Accuracy
from .edges import vjp
from .measurement import Measurement
from .sampled import blocks
from .variance import parts
from .world import scatter


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A sample, response by response.

    Args:
        rows: `[X, k, S, D]`, g_s of each response in the directions of its prompt.
        level: int64 `[X, k]`.
        means: `[X, k, S]`, E[a_s].
        square: `[X, n, S]`, E[a_s²].
        cross: `[X, n, S, n, S]`, E[a_s a_s'] of two responses.
        updates: `[b, P]`, the mean update of each block of the sample.
        cuts: those blocks, of k.
        group_size: G.
        groups: of a minibatch.
    """

    rows: Tensor
    level: Tensor
    means: Tensor
    square: Tensor
    cross: Tensor
    updates: Tensor
    cuts: list[slice]
    group_size: int
    groups: int

    def but(self, block: int | None) -> tuple[Tensor, Tensor]:
        """ū `[P]` and which of k responses are in it, without one block."""
        kept = torch.ones(self.rows.shape[1], dtype=torch.bool)
        if block is None:
            return self.updates.mean(0), kept
        kept[self.cuts[block]] = False
        return (self.updates.sum(0) - self.updates[block]) / (len(self.updates) - 1), kept


def sampled(measurement: Measurement, x: Tensor) -> Sampled | None:
    """The sample of a measurement; None where fewer than two responses to each prompt would be left without a block.

    Args:
        measurement: of one member, whose prompts share no context.
        x: `[N, V, D]`, from `scores.directions` of its target.
    """
    scene, batch, schedule = measurement.scene, measurement.batch, measurement.recipe.schedule
    paths, prompts, of_response = scene.responses, scene.world.prompts, parts(measurement)
    each = len(paths) // prompts
    cuts = blocks(each)
    if len(cuts) < 2 or each - (cuts[0].stop - cuts[0].start) < 2:
        return None
    order = paths.prompt.flatten().argsort(stable=True).view(prompts, each)
    mask, path = (of.view(-1, of.shape[-1])[order] for of in (paths.mask, paths.path))
    coefficients = torch.stack([torch.where(mask, w[order], 0.0) for w in of_response.weights], dim=2)
    advantages = torch.stack([batch.plus[0], batch.minus[0]], -1) if len(of_response.weights) > 1 else None
    levels, count = of_response.square.shape[1:]
    updates = []
    for cut in cuts:
        inside = torch.zeros(len(paths), dtype=torch.bool)
        inside[order[:, cut].flatten()] = True
        edges = scatter(batch.expected * inside[:, None] * len(cuts), paths, scene.world.contexts)
        updates.append(vjp(measurement.target, edges, scene.weights)[0])
    return Sampled(
        rows=_rows(coefficients, path, x),
        level=of_response.level.flatten()[order],
        means=torch.ones(prompts, each, 1, dtype=torch.float64) if advantages is None else advantages[order],
        square=of_response.square,
        cross=of_response.cross.view(prompts, levels, count, levels, count),
        updates=torch.stack(updates),
        cuts=cuts,
        group_size=schedule.group_size,
        groups=schedule.prompts // schedule.minibatches,
    )


def _rows(weights: Tensor, path: Tensor, x: Tensor) -> Tensor:
    """Σ_t w_t x(e_t), `[X, k, S, D]`, of weights `[X, k, S, T]` along paths `[X, k, T]`."""
    found = []
    for weight, edge in zip(weights, path, strict=True):
        used, place = edge.long().unique(return_inverse=True)
        counts = torch.zeros(*weight.shape[:2], len(used), dtype=torch.float64)
        counts.scatter_add_(2, place[:, None].expand(weight.shape), weight)
        found.append(counts @ x.flatten(0, 1)[used])
    return torch.stack(found)


def accuracy_of(sample: Sampled, g: Tensor, block: int | None = None) -> Accuracy:
    """The accuracy of the update against `g` `[P]`, of all of the sample or without one block."""
    u, kept = sample.but(block)
    rows, level, means = sample.rows[:, kept], sample.level[:, kept], sample.means[:, kept]
    prompts, k = level.shape
    at, size = torch.arange(prompts)[:, None], sample.group_size
    norms = (sample.square[at, level] * rows.square().sum(-1)).sum((-1, -2)) / k
    hot = torch.nn.functional.one_hot(level, sample.square.shape[1]).double()
    sums = torch.einsum("xkn,xksd->xnsd", hot, rows)
    same = sample.cross.diagonal(dim1=1, dim2=3)[at, :, :, level]  # [X, k, S, S]
    every = torch.einsum("xnsd,xmtd,xnsmt->x", sums, sums, sample.cross)
    itself = torch.einsum("xksd,xktd,xkst->x", rows, rows, same)
    expected = torch.einsum("xks,xksd->xkd", means, rows)
    spread = (expected - expected.mean(1, keepdim=True)).square().sum((-1, -2)) / (k - 1)
    square = float(u.square().sum() - spread.sum() / k / prompts**2)
    group = float(norms.mean() / size + (1 - 1 / size) * ((every - itself) / (k * (k - 1))).mean()) - square
    alignment, target = float(u @ g), float(g.square().sum())
    return Accuracy(
        alignment=alignment,
        square=square,
        target=target,
        bias=target - alignment**2 / square if square > 0 else target,
        bias_raw=square - 2 * alignment + target,
        variance_raw=group / sample.groups,
        responses=size * sample.groups,
    )
