"""Sampling and scoring where contexts merge and a policy carries no state: a pass over a table serves every token.

Shapes: M members, B responses, L positions (prompt, then response tokens and the answers of an environment), S
contexts, V vocabulary, T horizon, N layers, K experts a token.

A response walks c_{t+1} = follow(c_t, y_t), so that all that an engine says of it is looked up. A prompt is one token,
the number of its problem. The answer of an environment and the token before it are run as the context that they lead
to. Every random number is a hash of (member, step, response, token), so a member samples the same alone and in any
ensemble.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from firstorder.core.routing import Replay
from firstorder.core.tasks import Episodes
from firstorder.sim.model import noise
from firstorder.sim.model.chunks import chunked_step
from firstorder.sim.model.policy import Model, Step
from firstorder.sim.model.readings import of_engines, token_keys
from firstorder.sim.model.truncation import edges as cumulative
from firstorder.sim.model.truncation import keeps, named, restricted
from firstorder.sim.tasks.contexts import Contexts
from firstorder.sim.tasks.task import SimTask, converse

from .sequences import Rollouts

DRAWN = 1 << 18  # random numbers that are made at once


@dataclass(frozen=True, kw_only=True)
class Walks:
    """Sampled walks: `contexts` and `tokens`, int64 `[M, B, T]`, 0 once a response has ended; `mask` bool, where it has
    not; `rewards` `[M, B]`."""

    contexts: Tensor
    tokens: Tensor
    mask: Tensor
    rewards: Tensor


@dataclass(frozen=True, kw_only=True)
class TableScores:
    """What an engine says of sequences, looked up when it is read; fields as of `sequences.TokenScores`.

    Args:
        step: the engine at every context.
        contexts: int64 `[M, B, L]`, where each token is said; at an answer, where it leads to.
        tokens: int64 `[M, B, L]`.
        left_out: `[M, S]`, the mass of each context on tokens that are not kept; None without a mask.
        spread: whether entropies carry a gradient.
    """

    step: Step
    contexts: Tensor
    tokens: Tensor
    left_out: Tensor | None = None
    spread: bool = False

    @cached_property
    def logp(self) -> Tensor:
        """`[M, B, L]` nats of each token; off the response tokens it says nothing."""
        edge = self.contexts * self.step.logp.shape[-1] + self.tokens
        return self.step.logp.flatten(1).gather(1, edge.flatten(1)).view(edge.shape)

    @cached_property
    def entropy(self) -> Tensor:
        """`[M, B, L]` nats of the distribution that each token was drawn from."""
        logp = self.step.logp if self.spread else self.step.logp.detach()
        return self.at(-(logp.exp() * logp).sum(-1))

    @property
    def outside(self) -> Tensor:
        """`[M, B, L]`, the mass of each distribution on tokens that are not kept; 0 without a mask."""
        if self.left_out is None:
            return torch.zeros((), dtype=torch.float64).expand(self.contexts.shape)
        return self.at(self.left_out)

    @cached_property
    def routes(self) -> Tensor:
        """Experts used, int16 `[M, B, L, N, K]`; -1 in the last row."""
        return self._rows(self.step.ids, -1)

    @cached_property
    def gates(self) -> Tensor:
        """Their gate weights, without gradient, as `routes`; 0 in the last row."""
        return self._rows(self.step.gates, 0)

    @cached_property
    def live(self) -> Tensor:
        """Those that the routers would have chosen without replay, as `routes`."""
        return self.routes if self.step.live is self.step.ids else self._rows(self.step.live, -1)

    @cached_property
    def margin(self) -> Tensor:
        """Distance of those from flipping, `[M, B, L, N]`; 0 in the last row."""
        return self._rows(self.step.margin, 0)

    @property
    def state(self) -> Tensor:
        """What the engine makes of every context, `[M, S, N, D]`, without gradient."""
        return self.step.state.detach()

    def at(self, values: Tensor, members: Tensor | None = None) -> Tensor:
        """Values of contexts `[C, S]` where each token is said, `[C, B, L]`, of all or some `members`."""
        contexts = self.contexts if members is None else self.contexts[members]
        return values.gather(1, contexts.flatten(1)).view(contexts.shape)

    def _rows(self, x: Tensor, last: int) -> Tensor:
        """Of `[M, S, ...]` what stands in each row: row t says the token t + 1."""
        size = x.shape[1]
        place = self.contexts[..., 1:] + (torch.arange(len(x)) * size)[:, None, None]
        taken = x.flatten(0, 1).index_select(0, place.flatten()).view(*place.shape, *x.shape[2:])
        return torch.cat([taken, torch.full_like(taken[:, :, :1], last)], dim=2)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A `reader.Reader` of a policy that carries no state.

    Args:
        task: whose prompts are answered.
        contexts: those of the prompts 0, ..., X - 1 that are sampled.
    """

    task: SimTask
    contexts: Contexts

    def sample(self, model: Model, rows: Tensor, keys: Tensor, *, gates: bool = False) -> Rollouts:
        """`Reader.sample`."""
        step = self._step(model)
        if len(step.logp) > len(rows):
            return self._sample_drawn(step, rows, keys, gates)
        keep = keeps(step.logp, self.task.sim)
        step = replace(step, logp=restricted(step.logp, keep))
        drawn = draw(self.contexts, step.logp, rows, keys, self.task.layout.horizon)
        episodes = converse(self.task, rows, drawn.tokens, drawn.mask)
        return _rollouts(step, self._along(drawn.contexts), episodes, gates, keep)

    def _sample_drawn(self, every: Step, rows: Tensor, keys: Tensor, gates: bool) -> Rollouts:
        """The same from K engines a member, of which each token is said by one."""
        members, size = len(rows), every.logp.shape[1]
        readings = of_engines(*(x.reshape(members, -1, *x.shape[1:]) for x in (every.logp, every.ids)))
        drawn = draw(self.contexts, readings.sampled, rows, keys, self.task.layout.horizon)
        episodes = converse(self.task, rows, drawn.tokens, drawn.mask)
        contexts = self._along(drawn.contexts)
        edge = contexts * every.logp.shape[-1] + episodes.tokens
        taken = readings.taken(edge, token_keys(keys, edge.shape[-1]))
        together = {name: x.reshape(members, -1, *x.shape[2:]) for name, x in vars(every).items()}
        return _rollouts(Step(**together), taken * size + contexts, episodes, gates)

    def keys(self, tokens: Tensor) -> Tensor:
        """`Reader.keys`; row t says the token t + 1."""
        keys = self.contexts.keys[self._said_in(tokens)]
        return torch.cat([keys[..., 1:], keys[..., -1:]], dim=-1)

    def _said_in(self, tokens: Tensor) -> Tensor:
        """The context in which each token of sequences `[M, B, L]` is said, of the same shape."""
        response = tokens[..., self.task.layout.places]
        everywhere = torch.ones(1, dtype=torch.bool)
        return self._along(self.contexts.walk(self.contexts.start[tokens[..., 0]], response, everywhere))

    def score(
        self,
        model: Model,
        tokens: Tensor,
        replay: Replay | None = None,
        kept: Tensor | None = None,
        *,
        spread: bool = False,
    ) -> TableScores:
        """`Reader.score`; what is replayed or kept at a token is so at its context, which all its tokens share."""
        contexts = self._said_in(tokens)
        given = None if replay is None else replay.each(self._gathering(replay.ids, contexts))
        step, left_out = self._step(model, given), None
        if kept is not None:
            keep = self._kept(kept, contexts, step.logp.shape[-1])
            left_out = torch.where(keep, 0.0, step.logp.detach().exp()).sum(-1)
            step = replace(step, logp=restricted(step.logp, keep))
        return TableScores(step=step, contexts=contexts, tokens=tokens, left_out=left_out, spread=spread)

    def _step(self, model: Model, replay: Replay | None = None) -> Step:
        return chunked_step(model, None, self.contexts.features, self.contexts.keys, replay)

    def _along(self, contexts: Tensor) -> Tensor:
        """Contexts of response tokens `[M, B, T]` at every position `[M, B, L]`: of the next token that is said."""
        layout = self.task.layout
        said = torch.zeros(layout.length, dtype=torch.int64)
        said[layout.places] = 1
        return contexts.index_select(-1, said.cumsum(0) - said)

    def _kept(self, kept: Tensor, contexts: Tensor, vocab: int) -> Tensor:
        """The tokens kept at every context, bool `[M, S, V]`, from rows `[M, B, L, C]`; all where no row says."""
        members, size = len(kept), len(self.contexts.features)
        said = torch.where((kept >= 0).any(-1), contexts, size).flatten(1)
        row = torch.arange(said.shape[1]).expand(members, -1)
        source = torch.full((members, size + 1), -1).scatter_(1, said, row)[:, :size, None]
        taken = kept.flatten(1, 2).gather(1, source.clamp(min=0).expand(-1, -1, kept.shape[-1]))
        ids = torch.where(taken >= 0, taken, vocab).long()
        keep = torch.zeros(members, size, vocab + 1, dtype=torch.bool).scatter_(-1, ids, True)[..., :vocab]
        return keep | (source < 0)

    def _gathering(self, replay: Tensor, contexts: Tensor) -> Callable[[Tensor], Tensor]:
        """What takes from rows `[M, B, L, N, K]` those of every context, `[M, S, N, K]`, -1 where no row of `replay`,
        such rows of experts, has any."""
        members, size = len(replay), len(self.contexts.features)
        given = (replay[:, :, :-1, :, 0] >= 0).any(-1)
        place = torch.where(given, contexts[..., 1:], size).flatten(1)
        row = torch.arange(replay.shape[1] * replay.shape[2]).view(replay.shape[1:3])[:, :-1].flatten()
        source = torch.full((members, size + 1), -1).scatter_(1, place, row.expand(members, -1))[:, :size, None, None]

        def gathered(x: Tensor) -> Tensor:
            rows = x.flatten(1, 2)
            taken = rows.gather(1, source.clamp(min=0).expand(-1, -1, *rows.shape[2:]))
            return torch.where(source >= 0, taken, -1)

        return gathered


def _rollouts(step: Step, contexts: Tensor, episodes: Episodes, gates: bool, keep: Tensor | None = None) -> Rollouts:
    """What an engine says of episodes whose tokens are said in `contexts` `[M, B, L]`, of the tokens `keep` `[M, S, V]`
    of each context."""
    said = TableScores(step=step, contexts=contexts, tokens=episodes.tokens)
    ids = named(keep)
    ran = (torch.arange(episodes.tokens.shape[-1]) < (episodes.lengths - 1)[..., None])[..., None, None]
    return Rollouts(
        tokens=episodes.tokens,
        mask=episodes.mask,
        logp=torch.where(episodes.mask, said.logp, 0.0),
        lengths=episodes.lengths,
        routes=torch.where(ran, said.routes, -1),
        gates=torch.where(ran, said.gates, 0.0) if gates else None,
        kept=None if ids is None else torch.where(episodes.mask[..., None], _looked_up(ids, contexts), -1),
    )


def _looked_up(of_contexts: Tensor, contexts: Tensor) -> Tensor:
    """Of `[M, S, C]` what stands at `contexts` `[M, B, L]`."""
    place = contexts + (torch.arange(len(contexts)) * of_contexts.shape[1])[:, None, None]
    return of_contexts.flatten(0, 1)[place]


def draw(table: Contexts, logp: Tensor, prompt: Tensor, keys: Tensor, horizon: int) -> Walks:
    """Responses of a policy that a table holds, by inversion of the cumulative distribution.

    Args:
        table: where tokens lead.
        logp: `[M, S, V]` nats.
        prompt: int64 `[M, B]`.
        keys: int64 `[M, B]` or `[B]`, the hash key of each response's random numbers.
        horizon: T.
    """
    members, size, vocab = logp.shape
    endings = len(table.rewards) - size
    # endings are contexts that lead to themselves
    still = torch.arange(size, size + endings)[:, None].expand(-1, vocab)
    follow = torch.cat([table.follow, still]).flatten().numpy()
    edges = pad(cumulative(logp)[..., :-1], (0, 0, 0, endings), value=1.0).flatten(0, 1).numpy()
    offset = (torch.arange(members) * (size + endings))[:, None].expand(prompt.shape).flatten().numpy()
    place = table.start[prompt].flatten().numpy()
    contexts, tokens = np.empty((2, horizon, len(place)), dtype=np.int32)
    block, shared = max(1, DRAWN // keys.numel()), (keys.numel() // prompt.shape[1], prompt.shape[1])
    for first in range(0, horizon, block):
        steps = torch.arange(first, min(first + block, horizon))
        uniform = noise.uniform(noise.combine(keys.expand(shared), steps[:, None, None]))
        chance = uniform.expand(-1, *prompt.shape).reshape(len(steps), -1, 1).numpy()
        for t, u in zip(steps.tolist(), chance, strict=True):
            token = (edges[place + offset] < u).sum(1)
            contexts[t], tokens[t] = place, token
            place = follow[place * vocab + token]
    mask = contexts < size
    shape = (*prompt.shape, horizon)
    walked, said, running = (
        torch.from_numpy(np.ascontiguousarray(x.T)).view(shape)
        for x in (np.where(mask, contexts, 0).astype(np.int64), np.where(mask, tokens, 0).astype(np.int64), mask)
    )
    return Walks(
        contexts=walked,
        tokens=said,
        mask=running,
        rewards=table.rewards[torch.from_numpy(place)].view(prompt.shape),
    )
