"""Sampling and scoring of token sequences, the twin of `sim.exact.forward` in training: no tree,
only what was sampled.

Shapes: M members, B responses, L positions (prompt, then response tokens and the answers of an environment), N layers,
K experts a token, V vocabulary. An answer's tokens are run and routed like any other; mask False, log-prob 0.
Every random number is a hash of (member, step, response, position), so there is no generator state to save, and a
member samples the same alone and in any ensemble.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from firstorder.core.routing import Replay
from firstorder.core.training.kept import entropy, totals
from firstorder.sim.model import noise
from firstorder.sim.model.chunks import chunked_step
from firstorder.sim.model.policy import Model, initial_state
from firstorder.sim.model.readings import pick, token_keys
from firstorder.sim.model.truncation import edges, keeps, named, restricted
from firstorder.sim.tasks.task import Layout, SimTask, ends, heard


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Sampled responses: `tokens`, `mask` `[M, B, L]`, `logp` `[M, B, L]` nats, `lengths` `[M, B]`, `routes` int16
    `[M, B, L, N, K]`, -1 in the row of the last token and beyond, and `gates` of the same shape, their
    gate weights; None where nobody asked for them; `kept` `[M, B, L, C]` the tokens that each was sampled from
    (`core.training.kept`), None where nothing is left out."""

    tokens: Tensor
    mask: Tensor
    logp: Tensor
    lengths: Tensor
    routes: Tensor
    gates: Tensor | None = None
    kept: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Sequences under an engine: `logp` `[M, B, L]` nats of each token given those before it (0 at position 0),
    `entropy` `[M, B, L]` nats of the distribution it was drawn from, `outside` `[M, B, L]` the mass that this leaves
    out of the engine's own, `routes` `[M, B, L, N, K]` of each token run and `gates` of the same shape, their gate
    weights without gradient,
    `live` `[M, B, L, N, K]` what each router would have chosen without replay, `margin` `[M, B, L, N]` of that choice,
    `state` `[M, B, L, N, D]` that is carried into the context of each token
    (0 at position 0), without gradient."""

    logp: Tensor
    entropy: Tensor
    outside: Tensor
    routes: Tensor
    gates: Tensor
    live: Tensor
    margin: Tensor
    state: Tensor

    def at(self, values: Tensor, members: Tensor | None = None) -> Tensor:
        """Values `[C, B, L]` of the contexts that tokens are said in: themselves, every token has its own."""
        return values


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """A `reader.Reader` of a policy that carries a state from token to token."""

    task: SimTask

    def sample(self, model: Model, rows: Tensor, keys: Tensor, *, gates: bool = False) -> Rollouts:
        """`Reader.sample`."""
        return sample(model, self.task, rows, keys, gates=gates)

    def keys(self, tokens: Tensor) -> Tensor:
        """`Reader.keys`."""
        hashed, keys = None, []
        for now in tokens.unbind(-1):
            hashed = noise.extend(hashed, now)
            keys.append(hashed)
        return torch.stack(keys, dim=-1)

    def score(
        self,
        model: Model,
        tokens: Tensor,
        replay: Replay | None = None,
        kept: Tensor | None = None,
        *,
        spread: bool = False,
    ) -> TokenScores:
        """`Reader.score`."""
        return score(model, tokens, replay, kept, spread=spread)


def sample(model: Model, task: SimTask, rows: Tensor, keys: Tensor, *, gates: bool = False) -> Rollouts:
    """Sample responses until token 0 or the horizon, answered by the task's environment.

    Args:
        model: the inference engine; of M K members, K engines of each, of which every token is said by one.
        task: whose prompts are answered.
        rows: int64 `[M, B]`, the prompts.
        keys: int64 `[M, B]`, the hash key of each response's random numbers.
        gates: keep the gate weights too.
    """
    layout = task.layout
    tokens = torch.zeros(*rows.shape, layout.length, dtype=torch.int64)
    tokens[..., : layout.prompt] = task.prompts(rows).tokens
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    logp = torch.zeros(tokens.shape, dtype=torch.float64)
    state, hashed, running = initial_state(model, rows.shape[1]), None, torch.ones(rows.shape, dtype=torch.bool)
    draws, of_token = len(state) // len(rows), token_keys(keys, layout.length)
    depth_at = {layout.before(depth): depth for depth in range(layout.horizon)}
    ids, weights, left = [], [], []
    for position in range(layout.length - 1):
        now = tokens[..., position]
        hashed = noise.extend(hashed, now)
        if draws == 1:
            step = chunked_step(model, state, now, hashed, None)
            said, used, formed = step.logp, step.ids, step.gates
        else:
            every, keyed = (x.repeat_interleave(draws, dim=0) for x in (now, hashed))
            step = chunked_step(model, state, every, keyed, None)
            which = pick(of_token[..., position + 1], draws)
            said, used, formed = (_of(x, which, draws) for x in (step.logp, step.ids, step.gates))
        state = step.state
        ids.append(used)
        if gates:
            weights.append(formed)
        depth = depth_at.get(position + 1)
        if depth is None:
            continue
        if (keep := keeps(said, task.sim)) is not None:
            said = restricted(said, keep)
            left.append(keep | ~running[..., None])
        drawn = _draw(said, noise.uniform(noise.combine(keys, position)))
        logp_drawn = said.gather(-1, drawn[..., None])[..., 0]
        tokens[..., position + 1] = torch.where(running, drawn, 0)
        mask[..., position + 1] = running
        logp[..., position + 1] = torch.where(running, logp_drawn, 0.0)
        running = running & (drawn != 0)
        if layout.answered(depth + 1):
            end = position + 2
            answer = heard(task, rows, tokens[..., :end], mask[..., :end])
            tokens[..., end : end + layout.answer] = torch.where(running[..., None], answer, 0)
    lengths = ends(mask)
    routes = torch.stack([*ids, torch.full_like(ids[0], -1)], dim=2)
    ran = (torch.arange(layout.length) < (lengths - 1)[..., None])[..., None, None]
    return Rollouts(
        tokens=tokens,
        mask=mask,
        logp=logp,
        lengths=lengths,
        routes=torch.where(ran, routes, -1),
        gates=torch.where(ran, torch.stack([*weights, torch.zeros_like(weights[0])], dim=2), 0.0) if gates else None,
        kept=_along(left, task.layout),
    )


def score(
    model: Model, tokens: Tensor, replay: Replay | None = None, kept: Tensor | None = None, *, spread: bool = False
) -> TokenScores:
    """Run an engine over given sequences.

    Args:
        model: the engine; gradients flow if its weights carry them.
        tokens: int64 `[M, B, L]`.
        replay: experts `[M, B, L, N, K]` to use, its rule broadcastable to `[M, B]`.
        kept: int32 `[M, B, L, C]`, the tokens that distributions are renormalised over (`core.training.kept`).
        spread: whether entropies carry a gradient.
    """
    state, hashed = initial_state(model, tokens.shape[1]), None
    nothing = torch.zeros(tokens.shape[:2], dtype=torch.float64)
    logps, entropies, outsides, states = [nothing], [nothing], [nothing], [state]
    ids, gates, lives, margins = [], [], [], []
    for position in range(tokens.shape[2] - 1):
        now = tokens[..., position]
        hashed = noise.extend(hashed, now)
        step = chunked_step(model, state, now, hashed, None if replay is None else replay.each(partial(_row, position)))
        state = step.state
        logp = step.logp.gather(-1, tokens[..., position + 1, None])[..., 0]
        if kept is None:
            logps.append(logp)
            outsides.append(nothing)
            with torch.set_grad_enabled(spread and torch.is_grad_enabled()):
                entropies.append(-(step.logp.exp() * step.logp).sum(-1))
        else:
            row = kept[..., position + 1, :]
            inside, whole = totals(step.logp, row)
            logps.append(logp - inside)
            outsides.append(-(inside - whole).detach().expm1())
            with torch.set_grad_enabled(spread and torch.is_grad_enabled()):
                entropies.append(entropy(step.logp, row))
        ids.append(step.ids)
        gates.append(step.gates)
        lives.append(step.live)
        margins.append(step.margin)
        states.append(state.detach())
    return TokenScores(
        logp=torch.stack(logps, dim=2),
        entropy=torch.stack(entropies, dim=2),
        outside=torch.stack(outsides, dim=2),
        routes=torch.stack([*ids, torch.full_like(ids[0], -1)], dim=2),
        gates=torch.stack([*gates, torch.zeros_like(gates[0])], dim=2),
        live=torch.stack([*lives, torch.full_like(ids[0], -1)], dim=2),
        margin=torch.stack([*margins, torch.zeros_like(margins[0])], dim=2),
        state=torch.stack(states, dim=2),
    )


def _row(position: int, x: Tensor) -> Tensor:
    return x[:, :, position]


def _of(values: Tensor, which: Tensor, draws: int) -> Tensor:
    """Of `[M K, B, ...]` the engine that is taken for each response, `which` `[M, B]`; `[M, B, ...]`."""
    member, response = torch.arange(len(which))[:, None], torch.arange(which.shape[1])
    return values[member * draws + which, response]


def _draw(logp: Tensor, u: Tensor) -> Tensor:
    """Token ids by inversion of the cumulative distribution, `[M, B]`."""
    return (edges(logp)[..., :-1] < u[..., None]).sum(-1)


def _along(left: list[Tensor], layout: Layout) -> Tensor | None:
    """What was kept of each response token `[M, B, V]` at every position, as ids `[M, B, L, C]`; None where all was."""
    if not left:
        return None
    ids = named(torch.stack(left, dim=2))
    assert ids is not None
    every = torch.full((*ids.shape[:2], layout.length, ids.shape[-1]), -1, dtype=ids.dtype)
    every[:, :, layout.places] = ids
    return every
