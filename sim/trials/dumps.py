"""Dumps of rollouts whose engines are known exactly: clean ones, and ones with a fault that was made at its source.

Shapes: K draws of the rollout engine, S contexts, B responses, T response tokens, L positions, N layers, E experts a
token. Every random number is a hash of the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from firstorder.core.audit.finding import Known
from firstorder.core.formats.sample import Sample
from firstorder.sim.config import Sim
from firstorder.sim.model import noise
from firstorder.sim.model.readings import of_engines, token_keys
from firstorder.sim.sampling.table import Walks, draw
from firstorder.sim.tasks.chain import HOLDS, LOST

from . import dump_pairs as pairs
from .dump_pairs import Pair

GROUP = 8  # responses to a prompt
LENGTHS = (8, 40, 160, 600, 1700, 3400, 10000, 32768)  # tokens of the longest response of a dump
RARE = 24  # one dump in so many has the longest; it takes as long as three others
LEAST = 3  # responses of a dump
SALT = 6  # keeps the random numbers of a dump apart from those of its policy
Response = Callable[[Pair, Tensor, Tensor, int], Walks]


def dump(pair: Pair, seed: int, tokens: int = 10_000, longest: int = 160, steps: int = 1) -> list[Sample]:
    """Responses of a pair, groups of up to 8 to a prompt, of lengths between half the longest and the longest.

    Args:
        pair: what is sampled from and what is written.
        seed: of prompts, tokens and lengths.
        tokens: response tokens, about so many.
        longest: response tokens of the longest.
        steps: the global steps that the responses are spread over.
    """
    prompts, keys, cut = _asked(pair.sim, seed, tokens, longest)
    walks = draw(pair.contexts, _mixture(pair), prompts[None], keys[None], longest)
    return _samples(pair, _Drawn(seed=seed, prompts=prompts, keys=keys, cut=cut, walks=walks), steps)


def clean(seed: int, tokens: int = 10_000) -> list[Sample]:
    """A dump without a fault: policy, engines, lengths, replay and steps are hashes of the seed."""
    policy, engines, longest, replay, steps = _choices(seed)
    return dump(pairs.pair(policy, engines, seed // BLOCK, replay), seed, tokens, longest, steps)


def described(seed: int) -> tuple[str, str, int, str, int]:
    """Policy, engines, longest response, replay and steps of a clean dump."""
    return _choices(seed)


BLOCK = 100  # dumps whose policies have the same weights


def _choices(seed: int) -> tuple[str, str, int, str, int]:
    def of(names: list[str], salt: int) -> str:
        key = noise.combine(noise.combine(noise.mix(torch.tensor(seed)), SALT), salt)
        return names[int(noise.uniform(key) * len(names))]

    policy = of(list(pairs.POLICIES), 0)
    longest = (
        int(of([str(n) for n in LENGTHS[:-1]], 2))
        if of(["usual"] * (RARE - 1) + ["long"], 3) == "usual"
        else LENGTHS[-1]
    )
    replay, steps = of(["disabled", "R3"], 4), int(of(["1", "2", "4"], 5))
    return policy, of(list(pairs.ENGINES), 1), longest, replay, steps


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Walks `[1, B, T]` to `prompts` `[B]` with hash `keys` `[B]`, of which the first `cut` `[B]` tokens are kept;
    `draws` `[B, T]` the draw of the engine that each token is of, unless it is hashed."""

    seed: int
    prompts: Tensor
    keys: Tensor
    cut: Tensor
    walks: Walks
    draws: Tensor | None = None


def _asked(sim: Sim, seed: int, tokens: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
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


def _samples(pair: Pair, drawn: _Drawn, steps: int) -> list[Sample]:
    """The responses as a dump holds them; log-probs are float32 numbers, as engines send them."""
    tokens, mask, order = _laid(pair, drawn)
    contexts = drawn.walks.contexts[0].index_select(-1, order)
    draws = _draws(pair, contexts, tokens, drawn, order)
    lengths = ((torch.arange(mask.shape[-1]) + 1) * mask).amax(-1)
    size, vocab = pair.sampled.shape[1:]
    place = draws * size + contexts
    edge = place * vocab + tokens
    look = {
        "logp_mu": pair.logp_mu.reshape(-1).take(edge),
        "logp_old": pair.logp_old.reshape(-1).take(edge),
        "entropy": pair.entropy.reshape(-1).take(place),
    }
    columns = {name: torch.where(mask, x, 0.0).float().double() for name, x in look.items()}
    rewards = _rewards(pair, drawn)
    advantages = _advantages(rewards, drawn.prompts)
    samples = []
    for i, (length, reward, advantage) in enumerate(
        zip(lengths.tolist(), rewards.tolist(), advantages.tolist(), strict=True)
    ):
        rows = place[i, 1:length]
        step = i * steps // len(rewards)
        samples.append(
            Sample(
                source=f"dump {drawn.seed} response {i}",
                step=step,
                tokens=tokens[i, :length],
                mask=mask[i, :length],
                advantage=torch.where(mask[i, :length], advantage, 0.0).double(),
                version=torch.where(mask[i, :length], step, -1),
                routes=_ran(pair.routes, rows),
                routes_old=_ran(pair.routes_old, rows),
                reward=reward,
                group=int(drawn.prompts[i]),
                **{name: x[i, :length] for name, x in columns.items()},
            )
        )
    return samples


def _laid(pair: Pair, drawn: _Drawn) -> tuple[Tensor, Tensor, Tensor]:
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


def _draws(pair: Pair, contexts: Tensor, tokens: Tensor, drawn: _Drawn, order: Tensor) -> Tensor:
    """Which draw of the engine each token is of, int64 `[B, L]`."""
    if drawn.draws is not None:
        return drawn.draws.index_select(-1, order)
    if pair.draws == 1:
        return torch.zeros_like(contexts)
    readings = of_engines(pair.sampled[None], pair.routes[None])
    edge = contexts * pair.sampled.shape[-1] + tokens
    return readings.taken(edge[None], token_keys(drawn.keys, edge.shape[-1])[None])[0]


def _rewards(pair: Pair, drawn: _Drawn) -> Tensor:
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
    """Experts of the rows `[L - 1]` of a response, and -1 in its last, `[L, N, E]`."""
    taken = ids.flatten(0, 1).index_select(0, rows)
    return torch.cat([taken, torch.full_like(ids[0, :1], -1)])


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that is made at its source.

    Args:
        make: a dump of (seed, tokens) that has it.
        detector: the fault that an audit must report, None where the dump does not tell.
        known: what an audit is told beside the dump.
        needs: the input that would show it, where the dump does not tell.
    """

    make: Callable[[int, int], list[Sample]]
    detector: str | None
    known: Known = Known()
    needs: str = ""


def _base(seed: int, replay: str = "disabled") -> tuple[Pair, int, int]:
    """A pair whose engines are as far apart as real ones, the longest response and the steps of a dump of it."""
    policy, _, longest, _, steps = _choices(seed)
    longest = longest if longest < LENGTHS[-1] else LENGTHS[2]
    return pairs.pair(policy, USUAL[seed % len(USUAL)], seed // BLOCK, replay), longest, steps


USUAL = ("fresh-0.01", "noise-0.03", "fresh-0.03", "bf16", "fp8", "batch")
"""Engines whose KL is 1e-5 to 1e-3 nats a token."""


def _heated(temperature: float, *, recorded: str) -> Callable[[int, int], list[Sample]]:
    """Sampled at another temperature; the log-probs `recorded` are those of it, or raw ones."""

    def make(seed: int, tokens: int) -> list[Sample]:
        pair, longest, steps = _base(seed)
        hot = pairs.tempered(pair.sampled, temperature)
        of = {"sampled": hot} | ({"logp_mu": hot} if recorded == "processed" else {})
        return dump(replace(pair, **of), seed, tokens, longest, steps)

    return make


def _truncated(keep: Callable[[Tensor], Tensor], *, recorded: str) -> Callable[[int, int], list[Sample]]:
    """Sampled from what a filter keeps; the log-probs `recorded` are renormalised over it, or raw ones."""

    def make(seed: int, tokens: int) -> list[Sample]:
        pair, longest, steps = _base(seed)
        kept = keep(pair.sampled)
        of = {"sampled": kept} | ({"logp_mu": kept} if recorded == "processed" else {})
        return dump(replace(pair, **of), seed, tokens, longest, steps)

    return make


def _behind(updates: int) -> Callable[[int, int], list[Sample]]:
    """Sampled by weights of so many optimiser steps ago, whatever the versions say."""

    def make(seed: int, tokens: int) -> list[Sample]:
        policy, engines, longest, steps = _stale(seed)
        return dump(_moved(policy, engines, seed // BLOCK, updates), seed, tokens, longest, steps)

    return make


def _stale(seed: int) -> tuple[str, str, int, int]:
    policy, _, longest, _, steps = _choices(seed)
    return policy, USUAL[seed % len(USUAL)], min(longest, LENGTHS[4]), steps


@lru_cache(maxsize=pairs.KEPT)
def _moved(policy: str, engines: str, seed: int, updates: int) -> Pair:
    """A pair whose trainer is so many optimiser steps ahead."""
    ahead = pairs.trained(policy, seed, updates)
    return pairs.between(pairs.settings(policy, engines), seed, pairs.start(policy, seed), ahead)


def _corrupt(seed: int, tokens: int) -> list[Sample]:
    """Sampled by weights of which one expert is another's."""
    policy, engines, longest, steps = _stale(seed)
    weights = pairs.start(policy, seed // BLOCK)
    wrong = pairs.corrupted(weights, layer=0, expert=seed % 8)
    pair = pairs.between(pairs.settings(policy, engines), seed // BLOCK, wrong, weights)
    return dump(pair, seed, tokens, longest, steps)


def _rounded(seed: int, tokens: int) -> list[Sample]:
    """Routers of the rollout engine in bf16, all else in float64."""
    policy, _, longest, steps = _stale(seed)
    weights = pairs.start(policy, seed // BLOCK)
    sim = pairs.settings(policy, "exact")
    pair = pairs.between(sim, seed // BLOCK, pairs.rounded_router(weights), weights)
    return dump(pair, seed, tokens, longest, steps)


def _unreplayed(seed: int, tokens: int) -> list[Sample]:
    """Log-probs of a trainer that routes by itself, in a run that claims R3."""
    pair, longest, steps = _base(seed)
    return dump(pair, seed, tokens, longest, steps)


def _current(seed: int, tokens: int) -> list[Sample]:
    """A ratio of the dump that is made of the trainer's log-probs after its update."""
    policy, engines, longest, steps = _stale(seed)
    pair = pairs.pair(policy, engines, seed // BLOCK)
    after = replace(pair, logp_old=_moved(policy, engines, seed // BLOCK, 1).logp_old)
    samples, moved = (dump(each, seed, tokens, longest, steps) for each in (pair, after))
    return [_with_ratio(a, b) for a, b in zip(samples, moved, strict=True)]


def _with_ratio(sample: Sample, after: Sample) -> Sample:
    assert after.logp_old is not None
    assert sample.logp_mu is not None
    ratio = torch.where(sample.mask, (after.logp_old - sample.logp_mu).exp(), 0.0).float().double()
    return replace(sample, columns={"importance_ratio": ratio})


def _mixed(updates: int) -> Callable[[int, int], list[Sample]]:
    """Weights of the rollout engine replaced in the middle of every response; each token's version is right."""

    def make(seed: int, tokens: int) -> list[Sample]:
        policy, engines, longest, steps = _stale(seed)
        engines = engines if not engines.startswith("fresh") else "noise-0.03"
        old = _moved(policy, engines, seed // BLOCK, updates)
        ahead = pairs.trained(policy, seed // BLOCK, updates)
        new = pairs.between(pairs.settings(policy, engines), seed // BLOCK, ahead, ahead)
        both = {
            name: torch.cat([getattr(old, name), getattr(new, name)])
            for name in ("sampled", "logp_mu", "logp_old", "live", "entropy", "routes", "routes_old")
        }
        return _switched(replace(new, **both), seed, tokens, longest, steps)

    return make


def _switched(pair: Pair, seed: int, tokens: int, longest: int, steps: int) -> list[Sample]:
    """A dump of a pair whose first draw says the first half of every response, and its second the rest."""
    prompts, keys, cut = _asked(pair.sim, seed, tokens, longest)
    first = max(1, longest // 4)
    head = draw(pair.contexts, pair.sampled[:1], prompts[None], keys[None], first)
    last = (head.contexts[0, :, -1], head.tokens[0, :, -1])
    goes_on = pair.contexts.follow[last].clamp(max=len(pair.contexts.follow) - 1)
    there = replace(pair.contexts, start=goes_on)
    again = noise.combine(keys, SALT)
    rest = draw(there, pair.sampled[1:], torch.arange(len(keys))[None], again[None], max(1, longest - first))
    running = head.mask[0, :, -1:] & (pair.contexts.follow[last] < len(pair.contexts.follow))[:, None]
    joined = {
        "contexts": torch.where(running, rest.contexts[0], 0),
        "tokens": torch.where(running, rest.tokens[0], 0),
        "mask": running & rest.mask[0],
    }
    walks = Walks(rewards=rest.rewards, **{k: torch.cat([getattr(head, k)[0], x], -1)[None] for k, x in joined.items()})
    which = (torch.arange(walks.tokens.shape[-1]) >= first).long().expand(len(keys), -1)
    drawn = _Drawn(seed=seed, prompts=prompts, keys=keys, cut=cut, walks=walks, draws=which)
    return [replace(s, version=s.version - 1 + _later(s, first)) for s in _samples(pair, drawn, steps)]


def _later(sample: Sample, first: int) -> Tensor:
    """1 from the response token `first` on."""
    return (sample.mask.cumsum(-1) > first).long()


FAULTS: dict[str, Fault] = {
    **{
        f"temperature {t} processed": Fault(make=_heated(t, recorded="processed"), detector="temperature")
        for t in (1.1, 1.03, 0.97, 0.9, 0.7)
    },
    **{
        f"temperature {t} raw": Fault(make=_heated(t, recorded="raw"), detector="sampling not recorded")
        for t in (1.1, 0.9, 0.7)
    },
    **{
        f"top-p {p} processed": Fault(
            make=_truncated(lambda logp, p=p: pairs.nucleus(logp, p), recorded="processed"), detector="truncation"
        )
        for p in (0.99, 0.95, 0.9)
    },
    "top-k 4 processed": Fault(
        make=_truncated(lambda logp: pairs.largest(logp, 4), recorded="processed"), detector="truncation"
    ),
    **{
        f"top-p {p} raw": Fault(
            make=_truncated(lambda logp, p=p: pairs.nucleus(logp, p), recorded="raw"), detector="sampling not recorded"
        )
        for p in (0.95, 0.9)
    },
    **{f"{n} updates behind": Fault(make=_behind(n), detector="stale weights") for n in (1, 4, 16, 64)},
    "corrupt expert": Fault(make=_corrupt, detector="stale weights"),
    "router in bf16": Fault(make=_rounded, detector="router precision", known=Known(precision="fp32")),
    "routes not replayed": Fault(make=_unreplayed, detector="routes not replayed", known=Known(replay="R3")),
    "current for old": Fault(make=_current, detector="other ratio"),
    **{f"versions mixed, {n} updates": Fault(make=_mixed(n), detector="stale weights") for n in (1, 4, 16)},
}
"""By name."""
