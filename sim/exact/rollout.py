"""The inference engine on a world: the policy that is sampled, and what it records where that is drawn at every token.

Shapes: M members, K draws, N contexts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from firstorder.sim.checks import check_one_tail
from firstorder.sim.config import Sim
from firstorder.sim.model import noise
from firstorder.sim.model.numerics import Arithmetic
from firstorder.sim.model.policy import Weights
from firstorder.sim.model.readings import Readings, engine, of_engines, of_errors
from firstorder.sim.model.truncation import keeps

from .edges import Pass, Routes
from .pruning import pruned
from .world import Responses, World

TOKENS, SAMPLE = 3, 4  # keep the random numbers of readings, and of a sample of a tree, apart from all others


def rollout(sim: Sim, world: World, weights: Weights, mu: Arithmetic) -> tuple[Pass, Readings | None]:
    """The engine that is sampled, and its readings; None where what it records is what it sampled from.

    Where the engine is drawn at every token, the pass is of the mean policy μ̄, and its routes are those of the first
    draw.

    Raises:
        ConfigError: such an engine has no one tail to leave out.
    """
    check_one_tail(sim)
    if not sim.numerics.drawn:
        one = world.run(engine(sim, weights, mu))
        one = pruned(one, keeps(one.logp, sim))
        return one, of_errors(one.logp, sim.reading_noise, sim.draws) if sim.reading_noise else None
    draws = sim.draws
    every = world.run(engine(sim, weights, mu))
    readings = of_engines(*(x.reshape(-1, draws, *x.shape[1:]) for x in (every.logp, every.routes.contexts)))
    return replace(_first(every, draws), logp=readings.sampled), readings


def recorded(readings: Readings, responses: Responses) -> Tensor:
    """The log-probs recorded of sampled responses, `[M, B, T]` nats, 0 off the mask."""
    members, (size, horizon) = len(readings.logp), responses.mask.shape[-2:]
    row = noise.combine(noise.mix(torch.tensor(TOKENS)), torch.arange(size))[:, None]
    keys = noise.combine(row, torch.arange(horizon)).expand(members, -1, -1)
    said = readings.recorded(responses.path.long().expand(keys.shape), keys)
    return torch.where(responses.mask, said, 0.0)


def sampled(every: Responses, logp: Tensor, prompts: int, count: int) -> Responses:
    """A sample of all responses, as many for each prompt, of a policy with edge log-probs `[M, N, V]`."""
    each = -(-count // prompts)
    u = noise.uniform(noise.combine(noise.mix(torch.tensor(SAMPLE)), torch.arange(each * prompts)))
    prompt = torch.arange(prompts).repeat(each)
    chance = every.measure(logp, prompts) * prompts
    picks = torch.zeros(len(logp), len(u), dtype=torch.int64)
    for x in range(prompts):
        answers, asked = (every.prompt == x).nonzero()[:, 0], prompt == x
        edges = chance[:, answers].cumsum(-1)[:, :-1].contiguous()
        picks[:, asked] = answers[torch.searchsorted(edges, u[asked].expand(len(logp), -1).contiguous())]
    rows = (every.path, every.mask, every.prompt, every.rewards)
    path, mask, owner, rewards = (x[picks] for x in rows)
    return Responses(path=path, mask=mask, prompt=owner, rewards=rewards, vocab=every.vocab, sampled=True)


def _first(every: Pass, draws: int) -> Pass:
    """The first draw of each member."""

    def of(routes: Routes) -> Routes:
        return Routes(contexts=routes.contexts[::draws], leads=tuple(lead[::draws] for lead in routes.leads))

    return Pass(
        logp=every.logp[::draws],
        routes=of(every.routes),
        gates=of(every.gates),
        live=of(every.live),
        margin=every.margin[::draws],
        router_logp=every.router_logp[::draws],
    )
