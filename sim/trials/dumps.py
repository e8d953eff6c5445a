"""Dumps of rollouts whose engines are known exactly and that no fault was made in; `dump_faults` makes faults.

Shapes: K draws of the rollout engine, S contexts, B responses, T response tokens, L positions, N layers, E experts a
token. Every random number is a hash of the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from firstorder.core.formats.sample import Sample
from firstorder.core.routing import Replay
from firstorder.core.tasks import Episodes
from firstorder.sim.config import Sim
from firstorder.sim.model import noise
from firstorder.sim.model.numerics import arithmetic
from firstorder.sim.model.policy import load
from firstorder.sim.model.readings import engine, of_engines, token_keys
from firstorder.sim.sampling.reader import reader
from firstorder.sim.sampling.table import Walks, draw
from firstorder.sim.tasks import task_of
from firstorder.sim.tasks.chain import HOLDS, LOST

from . import dump_pairs as pairs
from .dump_pairs import Pair

Value = TypeVar("Value")
GROUP = 8  # responses to a prompt
LENGTHS = (8, 40, 160, 600, 1700, 3400, 10000)  # tokens of the longest response of a dump
LONG, RARE = 32768, 24  # one dump in so many has responses of that length; it takes as long as ten others
LEAST = 3  # responses of a dump
BLOCK = 100  # dumps whose policies have the same weights
SALT = 6  # keeps the random numbers of a dump apart from those of its policy


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a clean dump is of: keys of `dump_pairs.POLICIES` or `TREES` and of `ENGINES`, whether R3 replays, response
    tokens of the longest response, and the global steps that its responses are spread over."""

    policy: str
    engines: str
    replay: str
    longest: int
    steps: int


def choice(seed: int) -> Choice:
    """The choices of a clean dump, hashes of its seed."""
    base = noise.combine(noise.mix(torch.tensor(seed)), SALT)

    def of(names: Sequence[Value], salt: int) -> Value:
        return names[int(noise.uniform(noise.combine(base, salt)) * len(names))]

    return Choice(
        policy=of([*pairs.POLICIES, *pairs.TREES], 0),
        engines=of(list(pairs.ENGINES), 1),
        replay=of(["disabled", "R3"], 4),
        longest=LONG if of(range(RARE), 3) == 0 else of(LENGTHS, 2),
        steps=of([1, 2, 4], 5),
    )


def clean(seed: int, tokens: int = 10_000) -> list[Sample]:
    """A dump without a fault, about so many response tokens; see `choice`."""
    of, block = choice(seed), seed // BLOCK
    if of.policy in pairs.TREES:
        return of_tree(of, seed, tokens)
    return dump(pairs.pair(of.policy, of.engines, block, of.replay), seed, tokens, of.longest, of.steps)


def dump(pair: Pair, seed: int, tokens: int = 10_000, longest: int = 160, steps: int = 1) -> list[Sample]:
    """Responses of a pair, groups of up to 8 to a prompt, of lengths between half the longest and the longest.

    Args:
        pair: what is sampled from and what is written.
        seed: of prompts, tokens and lengths.
        tokens: response tokens, about so many.
        longest: response tokens of the longest.
        steps: the global steps that the responses are spread over.
    """
    prompts, keys, cut = asked(pair.sim, seed, tokens, longest)
    walks = draw(pair.contexts, _mixture(pair), prompts[None], keys[None], longest)
    return samples(pair, Drawn(seed=seed, prompts=prompts, keys=keys, cut=cut, walks=walks), steps)


@torch.no_grad()
def of_tree(of: Choice, seed: int, tokens: int) -> list[Sample]:
    """Responses of a policy that carries a state, to words of a few tokens."""
    sim, seeds = pairs.settings(of.policy, of.engines), torch.tensor([seed // BLOCK])
    task, weights = task_of(sim), pairs.start(of.policy, seed // BLOCK)
    prompts, keys, _ = asked(sim, seed, tokens, sim.horizon)
    said = reader(task).sample(engine(sim, weights, arithmetic(sim.numerics, seeds)), prompts[None], keys[None])
    trainer = load(weights, arithmetic(sim.training_numerics, seeds), sim)
    live = reader(task).score(trainer, said.tokens)
    used = live if of.replay == "disabled" else reader(task).score(trainer, said.tokens, Replay(ids=said.routes))
    mask, prompt_tokens = said.mask[0], said.tokens[0]
    episodes = Episodes(tokens=prompt_tokens, mask=mask, lengths=said.lengths[0], prompt=prompts)
    ran = said.routes[0] >= 0
    return _written(
        Written(
            seed=seed,
            tokens=prompt_tokens,
            mask=mask,
            lengths=said.lengths[0],
            columns={"logp_mu": said.logp[0], "logp_old": used.logp[0], "entropy": used.entropy[0]},
            routes=said.routes[0],
            routes_old=torch.where(ran, live.routes[0], -1),
            rewards=task.verify(episodes),
            prompts=prompts,
        ),
        of.steps,
    )


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Walks `[1, B, T]` to `prompts` `[B]` with hash `keys` `[B]`, of which the first `cut` `[B]` tokens are kept;
    `draws` `[B, T]` the draw of the engine that each token is of, unless it is hashed."""

    seed: int
    prompts: Tensor
    keys: Tensor
    cut: Tensor
    walks: Walks
    draws: Tensor | None = None


def asked(sim: Sim, seed: int, tokens: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts, keys and lengths of the responses, `[B]` each."""
    count = max(LEAST, round(tokens / (0.75 * longest)))
    base = noise.combine(noise.mix(torch.tensor(seed)), SALT)
    number = torch.arange(count)
    keys = noise.combine(base, number)
    group = number // min(GROUP, max(1, count // 2))
    prompts = (noise.uniform(noise.combine(noise.combine(base, -1), group)) * sim.training_prompts).long()
    cut = 1 + ((longest // 2) + noise.uniform(noise.combine(keys, -2)) * (longest - longest // 2)).long()
    return prompts, keys, cut.clamp(max=longest)


def _mixture(pair: Pair) -> Tensor:
    """What tokens are drawn from where nobody knows the draw, `[1, S, V]`."""
    return pair.sampled[:1] if pair.draws == 1 else of_engines(pair.sampled[None], pair.routes[None]).sampled


@dataclass(frozen=True, kw_only=True)
class Written:
    """Responses as arrays: `tokens`, `mask` and each of `columns` `[B, L]`, `lengths`, `rewards` and `prompts` `[B]`,
    and routes `[B, L, N, E]`, -1 in the row of the last token."""

    seed: int
    tokens: Tensor
    mask: Tensor
    lengths: Tensor
    columns: Mapping[str, Tensor]
    routes: Tensor
    routes_old: Tensor
    rewards: Tensor
    prompts: Tensor


def samples(pair: Pair, drawn: Drawn, steps: int) -> list[Sample]:
    """Walks over the tables of a pair, as a dump holds them."""
    tokens, mask, order = _laid(pair, drawn)
    contexts = drawn.walks.contexts[0].index_select(-1, order)
    place = _draws(pair, contexts, tokens, drawn, order) * pair.sampled.shape[1] + contexts
    edge = place * pair.sampled.shape[2] + tokens
    lengths = ((torch.arange(mask.shape[-1]) + 1) * mask).amax(-1)
    rows = torch.where(torch.arange(1, mask.shape[-1] + 1) < lengths[:, None], place.roll(-1, -1), -1)
    return _written(
        Written(
            seed=drawn.seed,
            tokens=tokens,
            mask=mask,
            lengths=lengths,
            columns={
                "logp_mu": pair.logp_mu.reshape(-1).take(edge),
                "logp_old": pair.logp_old.reshape(-1).take(edge),
                "entropy": pair.entropy.reshape(-1).take(place),
            },
            routes=_ran(pair.routes, rows),
            routes_old=_ran(pair.routes_old, rows),
            rewards=_rewards(pair, drawn),
            prompts=drawn.prompts,
        ),
        steps,
    )


def _written(found: Written, steps: int) -> list[Sample]:
    """The responses, spread over so many steps; log-probs are float32 numbers, as engines send them."""
    mask, count = found.mask, len(found.mask)
    columns = {name: torch.where(mask, x, 0.0).float().double() for name, x in found.columns.items()}
    step = torch.arange(count) * steps // count
    advantage = torch.where(mask, _advantages(found.rewards.double(), found.prompts)[:, None], 0.0)
    version = torch.where(mask, step[:, None], -1)
    of_response = zip(
        found.lengths.tolist(), step.tolist(), found.rewards.tolist(), found.prompts.tolist(), strict=True
    )
    return [
        Sample(
            source=f"dump {found.seed} response {i}",
            step=at,
            reward=reward,
            group=prompt,
            tokens=found.tokens[i, :length],
            mask=mask[i, :length],
            logp_mu=columns["logp_mu"][i, :length],
            logp_old=columns["logp_old"][i, :length],
            entropy=columns["entropy"][i, :length],
            advantage=advantage[i, :length],
            version=version[i, :length],
            routes=found.routes[i, :length],
            routes_old=found.routes_old[i, :length],
        )
        for i, (length, at, reward, prompt) in enumerate(of_response)
    ]


def _laid(pair: Pair, drawn: Drawn) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens `[B, L]`, prompt and answers included; which of them the policy sampled; and for every position the
    response token `[L]` that is sampled there or next."""
    layout, walks = pair.task.layout, drawn.walks
    depth = torch.arange(walks.tokens.shape[-1])
    places = layout.prompt + depth + layout.answer * (depth // layout.turn)
    said = torch.zeros(int(places[-1]) + 1, dtype=torch.int64)
    said[places] = 1
    kept = walks.mask[0] & (depth < drawn.cut[:, None])
    shape = (len(kept), len(said))
    tokens, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    tokens[:, : layout.prompt] = pair.task.prompts(drawn.prompts).tokens
    tokens[:, places], mask[:, places] = torch.where(kept, walks.tokens[0], 0), kept
    turns = depth[(depth > 0) & (depth % layout.turn == 0)] if layout.answer else depth[:0]
    holds = pair.contexts.cut[walks.contexts[0][:, turns]] > 0
    tokens[:, places[turns] - layout.answer] = torch.where(kept[:, turns], torch.where(holds, HOLDS, LOST), 0)
    return tokens, mask, said.cumsum(0) - said


def _draws(pair: Pair, contexts: Tensor, tokens: Tensor, drawn: Drawn, order: Tensor) -> Tensor:
    """Which draw of the engine each token is of, int64 `[B, L]`."""
    if drawn.draws is not None:
        return drawn.draws.index_select(-1, order)
    if pair.draws == 1:
        return torch.zeros_like(contexts)
    readings = of_engines(pair.sampled[None], pair.routes[None])
    edge = contexts * pair.sampled.shape[-1] + tokens
    return readings.taken(edge[None], token_keys(drawn.keys, edge.shape[-1])[None])[0]


def _rewards(pair: Pair, drawn: Drawn) -> Tensor:
    """Of the responses as they are cut, `[B]`."""
    walks, last = drawn.walks, drawn.cut - 1
    length = walks.mask[0].sum(-1)
    end = torch.minimum(last, length - 1)[:, None]
    context, token = (x[0].gather(-1, end)[:, 0] for x in (walks.contexts, walks.tokens))
    return pair.contexts.rewards[pair.contexts.follow[context, token]]


def _advantages(rewards: Tensor, prompts: Tensor) -> Tensor:
    """R less the mean of the responses to its prompt, `[B]`."""
    same = (prompts[:, None] == prompts).double()
    return rewards - (same @ rewards) / same.sum(-1)


def _ran(ids: Tensor, rows: Tensor) -> Tensor:
    """Experts of rows `[B, L]`, `[B, L, N, E]`, -1 where a row is -1."""
    taken = ids.flatten(0, 1).index_select(0, rows.clamp(min=0).flatten()).view(*rows.shape, *ids.shape[2:])
    return torch.where(rows[..., None, None] >= 0, taken, -1)
