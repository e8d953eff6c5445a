"""An engine on the whole tree: weights, arithmetic and routes in; log-probs and experts of every context out.

Shapes: M members, N contexts, S tokens of a lead, L MoE layers, K experts a token, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.sim.model.chunks import chunked_step
from firstorder.sim.model.policy import Model, Step, Weights, initial_state

from .tree import Tree


@dataclass(frozen=True, kw_only=True)
class Routes:
    """Experts at every token that an engine runs, int16.

    `contexts` `[M, N, L, K]` holds the last token of each context, `leads`, one `[M, S_t - 1, N_t, L, K]` a level, the
    tokens before it in its lead: all but the last of the prompt, and a response token that an environment answers.
    """

    contexts: Tensor
    leads: tuple[Tensor, ...]

    def equal(self, other: Routes) -> bool:
        """Whether every token visits the same experts, in the same order."""
        pairs = zip((self.contexts, *self.leads), (other.contexts, *other.leads), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What an engine says about every context.

    Args:
        logp: `[M, N, V]` nats, log-probs of the next token; carries the gradient if the weights do.
        routes: the experts it used.
        live: those that its routers would have chosen without replay.
        margin: `[M, N, L]`, distance of each live choice from flipping.
        router_logp: `[M, N, L, E]` nats, log softmax of the router logits.
    """

    logp: Tensor
    routes: Routes
    live: Routes
    margin: Tensor
    router_logp: Tensor


def run(model: Model, tree: Tree, replay: Routes | None = None) -> Pass:
    """Run an engine over the tree, level by level.

    Args:
        model: the engine.
        tree: the contexts.
        replay: experts to use at every token, prompt included; None routes live.
    """
    levels, leads, lives = walk(model, tree, replay)
    routes = Routes(contexts=torch.cat([level.ids for level in levels], dim=1), leads=tuple(leads))
    live = Routes(contexts=torch.cat([level.live for level in levels], dim=1), leads=tuple(lives))
    return Pass(
        logp=torch.cat([level.logp for level in levels], dim=1),
        routes=routes,
        live=routes if replay is None else live,
        margin=torch.cat([level.margin for level in levels], dim=1),
        router_logp=torch.cat([level.router_logp for level in levels], dim=1),
    )


def walk(model: Model, tree: Tree, replay: Routes | None = None) -> tuple[list[Step], list[Tensor], list[Tensor]]:
    """The contexts level by level, and the experts at the tokens that lead to them; arguments as for `run`.

    Returns:
        The step of the last token of every context, one a level; of those before it the experts, and those that would
        have been chosen without replay, int16 `[M, leads, N_t, L, K]`.
    """
    state = initial_state(model, len(tree.prompts))
    levels, leads, lives = [], [], []
    for depth, (tokens, keys) in enumerate(zip(tree.leads, tree.keys, strict=True)):
        if depth:
            state = state.repeat_interleave(tree.vocab - 1, dim=1)
        ids, live = [], []
        for place, given in enumerate(_replayed(replay, tree, depth)):
            done = chunked_step(model, state, tokens[place], keys[place], given)
            state = done.state
            ids.append(done.ids)
            live.append(done.live)
        leads.append(torch.stack(ids, dim=1)[:, :-1])
        lives.append(torch.stack(live, dim=1)[:, :-1])
        levels.append(done)
    return levels, leads, lives


def states(model: Model, tree: Tree, replay: Routes | None = None) -> Tensor:
    """What an engine carries into every context, `[M, N, L, D]` without gradient; arguments as for `run`."""
    with torch.no_grad():
        levels, *_ = walk(model, tree, replay)
        return torch.cat([level.state for level in levels], dim=1)


def vjp(done: Pass, edges: Tensor, weights: Weights) -> Tensor:
    """Σ_edges a_edge ∇ log π(edge) for each member, `[M, parameters]`; the graph is kept.

    Args:
        done: a pass whose weights require grad.
        edges: `[M, N, V]` coefficients.
        weights: the leaves.
    """
    leaves = [w for w in weights.values() if w.requires_grad]
    # of a scalar: given `grad_outputs`, autograd imports sympy first
    grads = torch.autograd.grad((edges * done.logp).sum(), leaves, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten(1) for g in grads], dim=1)


def along(routes: Routes, tree: Tree) -> Tensor:
    """Experts at every token of every response, as an episode lays them out, int16 `[M, B, length, L, K]`.

    The rows of the last token and beyond, which an engine does not run, are -1.
    """
    layout, context = tree.task.layout, tree.path.long() // tree.vocab
    members, _, *layers = routes.contexts.shape
    found = routes.contexts.new_full((members, len(tree.path), layout.length, *layers), -1)
    start = 0
    for depth, count in enumerate(tree.levels):
        there = tree.mask[:, depth].nonzero()[:, 0]
        node, end = context[there, depth] - start, layout.before(depth)
        lead = routes.leads[depth]
        found[:, there, end - 1] = routes.contexts[:, start + node]
        for place in range(lead.shape[1]):
            found[:, there, end - 1 - lead.shape[1] + place] = lead[:, place, node]
        start += count
    return found


def _replayed(replay: Routes | None, tree: Tree, depth: int) -> list[Tensor | None]:
    """The experts given to each token of a level's leads; None routes live."""
    if replay is None:
        return [None] * len(tree.leads[depth])
    start = sum(tree.levels[:depth])
    return [*replay.leads[depth].unbind(1), replay.contexts[:, start : start + tree.levels[depth]]]
