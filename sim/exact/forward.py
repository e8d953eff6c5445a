"""An engine on the whole tree: weights, arithmetic and routes in; log-probs and experts of every context out.

Shapes: M members, N contexts, S tokens of a lead, L MoE layers, K experts a token, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from firstorder.sim.model.chunks import chunked_step
from firstorder.sim.model.policy import Model, Step, initial_state

from .edges import Pass, Routes
from .world import Responses

if TYPE_CHECKING:
    from .tree import Tree


def run(model: Model, tree: Tree, replay: Routes | None = None) -> Pass:
    """Run an engine over the tree, level by level.

    Args:
        model: the engine.
        tree: the contexts.
        replay: experts to use at every token, prompt included; None routes live.
    """
    levels, leads, lives = walk(model, tree, replay)
    logp, ids, live, margin, router_logp = (
        torch.cat([getattr(level, name) for level in levels], dim=1)
        for name in ("logp", "ids", "live", "margin", "router_logp")
    )
    routes = Routes(contexts=ids, leads=tuple(leads))
    chosen = routes if replay is None else Routes(contexts=live, leads=tuple(lives))
    return Pass(logp=logp, routes=routes, live=chosen, margin=margin, router_logp=router_logp)


def walk(model: Model, tree: Tree, replay: Routes | None = None) -> tuple[list[Step], list[Tensor], list[Tensor]]:
    """The contexts level by level, and the experts at the tokens that lead to them; arguments as for `run`.

    Returns:
        The step of the last token of every context, one a level; of those before it the experts, and those that would
        have been chosen without replay, int16 `[M, leads, N_t, L, K]`.
    """
    state = initial_state(model, tree.prompts)
    levels, leads, lives = [], [], []
    for depth, (tokens, keys) in enumerate(zip(tree.leads, tree.keys, strict=True)):
        if depth:
            state = state.repeat_interleave(tree.vocab - tree.task.sim.first, dim=1)
        ids, live = [], []
        for place, routes in enumerate(_of_level(replay, tree, depth)):
            step = chunked_step(model, state, tokens[place], keys[place], routes)
            state = step.state
            ids.append(step.ids)
            live.append(step.live)
        leads.append(torch.stack(ids, dim=1)[:, :-1])
        lives.append(torch.stack(live, dim=1)[:, :-1])
        levels.append(step)
    return levels, leads, lives


def look_up(model: Model, tree: Tree, replay: Routes | None = None) -> Pass:
    """Run a policy that carries no state over the tree: one pass over the table of what its contexts are.

    Args:
        model: the engine.
        tree: the contexts.
        replay: experts to use at every context; None routes live.
    """
    step, place = _table(model, tree, replay), tree.place
    return Pass(
        logp=step.logp[:, place],
        routes=_repeated(step.ids[:, place], tree),
        live=_repeated(step.live[:, place], tree),
        margin=step.margin[:, place],
        router_logp=step.router_logp[:, place],
    )


def _table(model: Model, tree: Tree, replay: Routes | None) -> Step:
    """One pass over the table, every row with the experts given at a context that it is."""
    table, place = tree.table, tree.place
    ids = None
    if replay is not None:
        members, _, *layers = replay.contexts.shape
        ids = replay.contexts.new_full((members, len(table.features), *layers), -1)
        ids[:, place] = replay.contexts
    return chunked_step(model, None, table.features, table.keys, ids)


def _repeated(contexts: Tensor, tree: Tree) -> Routes:
    """Routes whose leads are those of the context that they lead to."""
    parts = torch.split(contexts, list(tree.widths), dim=1)
    leads = (part[:, None].expand(-1, len(lead) - 1, -1, -1, -1) for part, lead in zip(parts, tree.leads, strict=True))
    return Routes(contexts=contexts, leads=tuple(leads))


def states(model: Model, tree: Tree, replay: Routes | None = None) -> Tensor:
    """What an engine carries into every context, or makes of it where it carries nothing, `[M, N, L, D]` without
    gradient; arguments as for `run`."""
    with torch.no_grad():
        if not tree.task.sim.carries:
            return _table(model, tree, replay).state[:, tree.place]
        levels, *_ = walk(model, tree, replay)
        return torch.cat([level.state for level in levels], dim=1)


def along(routes: Routes, tree: Tree, part: Responses) -> Tensor:
    """Experts at every token of responses, as an episode lays them out, int16 `[M, B, length, L, K]`.

    The rows of the last token and beyond, which an engine does not run, are -1.
    """
    layout, context = tree.task.layout, part.contexts
    members, _, *layers = routes.contexts.shape
    experts = routes.contexts.new_full((members, len(part), layout.length, *layers), -1)
    start = 0
    for depth, count in enumerate(tree.widths):
        longer = part.mask[:, depth].nonzero()[:, 0]
        node, last, lead = context[longer, depth] - start, layout.before(depth) - 1, routes.leads[depth]
        experts[:, longer, last] = routes.contexts[:, start + node]
        for place in range(lead.shape[1]):
            experts[:, longer, last - lead.shape[1] + place] = lead[:, place, node]
        start += count
    return experts


def _of_level(replay: Routes | None, tree: Tree, depth: int) -> list[Tensor | None]:
    """The experts given to each token of a level's leads; None routes live."""
    if replay is None:
        return [None] * len(tree.leads[depth])
    start = sum(tree.widths[:depth])
    return [*replay.leads[depth].unbind(1), replay.contexts[:, start : start + tree.widths[depth]]]
