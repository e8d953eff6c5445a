"""An engine on the whole tree: weights, arithmetic and routes in; log-probs and experts of every context out.

Shapes: M members, N contexts, S tokens of a lead, L MoE layers, K experts a token, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from firstorder.core.routing import Replay
from firstorder.sim.model.chunks import chunked_step
from firstorder.sim.model.policy import Model, Step, initial_state

from .edges import Given, Pass, Routes
from .world import Responses

if TYPE_CHECKING:
    from .tree import Tree


def run(model: Model, tree: Tree, replay: Given | None = None) -> Pass:
    """Run an engine over the tree, level by level.

    Args:
        model: the engine.
        tree: the contexts.
        replay: experts to use at every token, prompt included; None routes live.
    """
    levels, leads = walk(model, tree, replay)
    logp, ids, gates, live, margin, router_logp = (
        torch.cat([getattr(level, name) for level in levels], dim=1)
        for name in ("logp", "ids", "gates", "live", "margin", "router_logp")
    )
    routes = Routes(contexts=ids, leads=_stacked(leads, "ids"))
    return Pass(
        logp=logp,
        routes=routes,
        gates=Routes(contexts=gates, leads=_stacked(leads, "gates")),
        live=routes if replay is None else Routes(contexts=live, leads=_stacked(leads, "live")),
        margin=margin,
        router_logp=router_logp,
    )


def _stacked(leads: list[list[Step]], name: str) -> tuple[Tensor, ...]:
    """What the steps of each level's leads but the last have under a name, `[M, leads, N_t, L, K]`."""
    return tuple(torch.stack([getattr(step, name) for step in steps], dim=1)[:, :-1] for steps in leads)


def walk(model: Model, tree: Tree, replay: Given | None = None) -> tuple[list[Step], list[list[Step]]]:
    """The contexts level by level; arguments as for `run`.

    Returns:
        The step of the last token of every context, one a level; and the steps of all tokens that lead to it.
    """
    state = initial_state(model, tree.prompts)
    levels, leads = [], []
    for depth, (tokens, keys) in enumerate(zip(tree.leads, tree.hashes, strict=True)):
        if depth:
            state = state.repeat_interleave(tree.vocab - tree.task.sim.first, dim=1)
        steps = []
        for place, given in enumerate(_of_level(replay, tree, depth)):
            step = chunked_step(model, state, tokens[place], keys[place], given)
            state = step.state
            steps.append(step)
        leads.append(steps)
        levels.append(step)
    return levels, leads


def look_up(model: Model, tree: Tree, replay: Given | None = None) -> Pass:
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
        gates=_repeated(step.gates[:, place], tree),
        live=_repeated(step.live[:, place], tree),
        margin=step.margin[:, place],
        router_logp=step.router_logp[:, place],
    )


def _table(model: Model, tree: Tree, replay: Given | None) -> Step:
    """One pass over the table, every row with the experts given at a context that it is."""
    table, place = tree.table, tree.place

    def of_rows(routes: Routes) -> Tensor:
        members, _, *layers = routes.contexts.shape
        rows = routes.contexts.new_full((members, len(table.features), *layers), -1)
        rows[:, place] = routes.contexts
        return rows

    return chunked_step(model, None, table.features, table.keys, None if replay is None else replay.at(of_rows))


def _repeated(contexts: Tensor, tree: Tree) -> Routes:
    """Routes whose leads are those of the context that they lead to."""
    parts = torch.split(contexts, list(tree.widths), dim=1)
    leads = (part[:, None].expand(-1, len(lead) - 1, -1, -1, -1) for part, lead in zip(parts, tree.leads, strict=True))
    return Routes(contexts=contexts, leads=tuple(leads))


def states(model: Model, tree: Tree, replay: Given | None = None) -> Tensor:
    """What an engine carries into every context, or makes of it where it carries nothing, `[M, N, L, D]` without
    gradient; arguments as for `run`."""
    with torch.no_grad():
        if not tree.task.sim.carries:
            return _table(model, tree, replay).state[:, tree.place]
        levels, _ = walk(model, tree, replay)
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


def _of_level(replay: Given | None, tree: Tree, depth: int) -> list[Replay | None]:
    """What is given to each token of a level's leads; None routes live."""
    count = len(tree.leads[depth])
    if replay is None:
        return [None] * count
    start = sum(tree.widths[:depth])

    def pick(routes: Routes, place: int) -> Tensor:
        own = routes.contexts[:, start : start + tree.widths[depth]]
        return own if place == count - 1 else routes.leads[depth][:, place]

    return [replay.at(partial(pick, place=place)) for place in range(count)]
