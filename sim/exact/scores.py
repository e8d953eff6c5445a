"""Scores of edges, and the directions that those of one prompt span.

A response goes through the contexts of its own prompt alone, so that all that its update's length is made of are inner
products of scores within a prompt. With K the matrix of these,

    K = ⟨∇ log π(e), ∇ log π(e')⟩ = Q Λ Qᵀ,      x_e = (Q √Λ)_e,      ⟨x_e, x_e'⟩ = ⟨∇ log π(e), ∇ log π(e')⟩

and x has as many numbers as a prompt has independent scores, contexts · (V - 1) at most, where θ has thousands.

Shapes: N contexts, V vocabulary, X prompts, D directions, P parameters, M members.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core import progress
from firstorder.sim.model.policy import leaves, load, step, trainable
from firstorder.sim.model.truncation import restricted

from .scene import Mode, Scene

ROUNDING = 1e-14  # of the largest eigenvalue of K, below which one is what rounding has left of 0


def edge_scores(scene: Scene, mode: Mode, contexts: Tensor) -> Tensor:
    """∇ log π_θ(a|c) of every token of some contexts, `[M, C, V, P]`, of policies that carry no state.

    Each context is run on its own copy of the weights, so that one backward pass is one token of all of them.

    Args:
        scene: of M members.
        mode: the target's replay.
        contexts: int64 `[C]`.
    """
    sim, members, count = scene.world.task.sim, len(scene.mu_old.logp), len(contexts)
    copies = leaves({name: w.repeat_interleave(count, 0) for name, w in scene.weights.items()})
    model, given = load(copies, scene.pi.copies(count), sim), scene.replay(mode)
    replay = None if given is None else given.at(lambda routes: routes.contexts[:, contexts].flatten(0, 1)[:, None])
    features, keys = (x[:, None].repeat(members, *[1] * x.ndim) for x in _rows(scene, contexts))
    found = step(model, None, features, keys, replay)
    keep = None if scene.over is None else scene.over[:, contexts].flatten(0, 1)[:, None]
    logp, parameters = restricted(found.logp, keep)[:, 0], list(trainable(copies).values())
    scores = logp.new_empty(*logp.shape, sum(w[0].numel() for w in parameters))  # filled, for there are many
    for token, one in enumerate(logp.T):
        slopes = torch.autograd.grad(one.sum(), parameters, retain_graph=True, materialize_grads=True)
        torch.cat([slope.flatten(1) for slope in slopes], dim=1, out=scores[:, token])
    return scores.view(members, count, *scores.shape[1:])


def _rows(scene: Scene, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """Features `[C, F]` and keys `[C]` of some contexts of a world whose policy carries no state."""
    world = scene.world
    table = world.task.contexts(world.rows) if world.exhaustive else world.table  # type: ignore[attr-defined]
    place = world.place[contexts] if world.exhaustive else contexts  # type: ignore[attr-defined]
    return table.features[place], table.keys[place]


def directions(scene: Scene, mode: Mode) -> Tensor:
    """x of every edge, `[N, V, D]`; inner products are those of scores within each prompt alone.

    Args:
        scene: of one member, whose prompts share no context.
        mode: the target's replay.
    """
    world = scene.world
    found = []
    for reached in progress.steps("scores", list(world.reachable)):
        contexts = reached.nonzero()[:, 0]
        scores = edge_scores(scene, mode, contexts)[0].flatten(0, 1)
        found.append((contexts, square_root(scores @ scores.T).view(len(contexts), world.vocab, -1)))
    x = torch.zeros(world.contexts, world.vocab, max(part.shape[-1] for _, part in found), dtype=torch.float64)
    for contexts, part in found:
        x[contexts, :, : part.shape[-1]] = part
    return x


def square_root(products: Tensor) -> Tensor:
    """Q √Λ of a positive semi-definite matrix `[E, E]`, without the directions of 0, `[E, D]`."""
    values, vectors = torch.linalg.eigh(products)
    used = values > ROUNDING * values[-1]
    root: Tensor = vectors[:, used] * values[used].sqrt()
    return root
