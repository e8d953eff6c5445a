"""An engine on the whole tree: weights, arithmetic and routes in; log-probs and experts of every context out.

Shapes: M members, N contexts, P prompts, L MoE layers, K experts a token, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .policy import Model, Step, Weights, initial_state, step
from .tree import Tree

# contexts x members run at once; above it the forward is checkpointed, so that memory stays linear in contexts
CHUNK_ROWS = 1 << 15


@dataclass(frozen=True, kw_only=True)
class Routes:
    """Experts at every token that an engine runs, int16.

    `prompt` `[M, prompt_length - 1, P, L, K]` holds all but the last prompt token, `contexts` `[M, N, L, K]` the last
    token of each context.
    """

    prompt: Tensor
    contexts: Tensor


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What an engine says about every context.

    Args:
        logp: `[M, N, V]` nats, log-probs of the next token; carries the gradient if the weights do.
        routes: the experts it used.
        margin: `[M, N, L]`, distance of each live choice from flipping.
        router_logp: `[M, N, L, E]` nats, log softmax of the router logits.
    """

    logp: Tensor
    routes: Routes
    margin: Tensor
    router_logp: Tensor


def run(model: Model, tree: Tree, replay: Routes | None = None) -> Pass:
    """Run an engine over the tree, level by level.

    Args:
        model: the engine.
        tree: the contexts.
        replay: experts to use at every token, prompt included; None routes live.
    """
    members = model.weights["head"].shape[0]
    before, levels = walk(model, tree, replay)
    ids = torch.cat([level.ids for level in levels], dim=1)
    prompt = (
        torch.stack([done.ids for done in before], dim=1)
        if before
        else ids.new_empty(members, 0, len(tree.prompts), *ids.shape[2:])
    )
    return Pass(
        logp=torch.cat([level.logp for level in levels], dim=1),
        routes=Routes(prompt=prompt, contexts=ids),
        margin=torch.cat([level.margin for level in levels], dim=1),
        router_logp=torch.cat([level.router_logp for level in levels], dim=1),
    )


def walk(model: Model, tree: Tree, replay: Routes | None = None) -> tuple[list[Step], list[Step]]:
    """Every prompt token but the last, then the contexts level by level; arguments as for `run`."""
    children = torch.arange(1, tree.vocab)
    state = initial_state(model, len(tree.prompts))
    before: list[Step] = []
    levels: list[Step] = []
    for position, (tokens, keys) in enumerate(zip(tree.prompts.T, tree.prompt_keys, strict=True)):
        at_context = position == tree.prompts.shape[1] - 1
        given = None if replay is None else _replayed(replay, tree, position, at_context)
        done = chunked_step(model, state, tokens, keys, given)
        state = done.state
        (levels if at_context else before).append(done)
    for depth in range(1, tree.horizon):
        parents = levels[-1].state
        tokens = children.repeat(tree.levels[depth - 1])
        given = None if replay is None else _level(replay.contexts, tree, depth)
        levels.append(
            chunked_step(model, parents.repeat_interleave(tree.vocab - 1, dim=1), tokens, tree.keys[depth], given)
        )
    return before, levels


def states(model: Model, tree: Tree, replay: Routes | None = None) -> Tensor:
    """What an engine carries into every context, `[M, N, L, D]` without gradient; arguments as for `run`."""
    with torch.no_grad():
        _, levels = walk(model, tree, replay)
        return torch.cat([level.state for level in levels], dim=1)


def vjp(done: Pass, edges: Tensor, weights: Weights) -> Tensor:
    """Σ_edges a_edge ∇ log π(edge) for each member, `[M, parameters]`; the graph is kept.

    Args:
        done: a pass whose weights require grad.
        edges: `[M, N, V]` coefficients.
        weights: the leaves.
    """
    leaves = [w for w in weights.values() if w.requires_grad]
    grads = torch.autograd.grad(done.logp, leaves, grad_outputs=edges, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten(1) for g in grads], dim=1)


def _replayed(replay: Routes, tree: Tree, position: int, at_context: bool) -> Tensor:
    return _level(replay.contexts, tree, 0) if at_context else replay.prompt[:, position]


def _level(contexts: Tensor, tree: Tree, depth: int) -> Tensor:
    start = sum(tree.levels[:depth])
    return contexts[:, start : start + tree.levels[depth]]


def chunked_step(model: Model, state: Tensor, tokens: Tensor, keys: Tensor, replay: Tensor | None) -> Step:
    """`policy.step`, in checkpointed chunks of prefixes once there are many; arguments as there."""
    size = max(1, CHUNK_ROWS // state.shape[0])
    if tokens.shape[-1] <= size:
        return step(model, state, tokens, keys, replay)
    chunks = []
    for start in range(0, tokens.shape[-1], size):
        cut = slice(start, start + size)
        given = None if replay is None else replay[:, cut]
        chunks.append(_checkpointed(model, state[:, cut], tokens[..., cut], keys[..., cut], given))
    return Step(**{name: torch.cat([getattr(c, name) for c in chunks], dim=1) for name in vars(chunks[0])})


def _checkpointed(model: Model, state: Tensor, tokens: Tensor, keys: Tensor, replay: Tensor | None) -> Step:
    if not torch.is_grad_enabled():
        return step(model, state, tokens, keys, replay)

    def tensors(carried: Tensor) -> tuple[Tensor, ...]:
        return tuple(vars(step(model, carried, tokens, keys, replay)).values())

    values = checkpoint(tensors, state, use_reentrant=False, preserve_rng_state=False)
    return Step(**dict(zip(Step.__dataclass_fields__, values, strict=True)))
