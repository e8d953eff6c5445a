"""Dumps with a fault that was made at its source, so that it is known exactly, and the detector that must find each.

Shapes: K draws of the rollout engine, S contexts, V vocabulary, B responses, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor

from firstorder.core.audit.finding import Known
from firstorder.core.formats.sample import Sample
from firstorder.sim.model import noise
from firstorder.sim.sampling.table import Walks, draw

from . import dump_pairs as pairs
from .dump_pairs import Pair
from .dumps import BLOCK, SALT, Drawn, asked, choice, dump, samples

Maker = Callable[[int, int], list[Sample]]
Recorded = Literal["processed", "raw"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that is made at its source.

    Args:
        make: a dump of (seed, tokens) that has it.
        detector: the fault that an audit reports where it is large enough to be told.
        known: what an audit is told beside the dump.
        needs: the input that would show it at any size.
    """

    make: Maker
    detector: str
    known: Known = field(default_factory=Known)
    needs: str = ""


USUAL = ("fresh-0.01", "noise-0.03", "fresh-0.03", "bf16", "fp8", "batch")
"""Engines whose KL is 1e-5 to 1e-3 nats a token."""
LONGEST = 1700  # tokens of a response, so that ten thousand are several responses


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a dump with a fault is of, hashes of its seed."""

    policy: str
    engines: str
    block: int
    longest: int
    steps: int

    @property
    def pair(self) -> Pair:
        """Engines without a fault."""
        return pairs.pair(self.policy, self.engines, self.block)


def setting(seed: int, engines: str | None = None) -> Setting:
    """The setting of a seed, its engines given or one of `USUAL`."""
    of = choice(seed)
    return Setting(
        policy=of.policy if of.policy in pairs.POLICIES else "usual",
        engines=engines or USUAL[seed % len(USUAL)],
        block=seed // BLOCK,
        longest=min(of.longest, LONGEST),
        steps=of.steps,
    )


def _dump(of: Setting, pair: Pair, seed: int, tokens: int) -> list[Sample]:
    return dump(pair, seed, tokens, of.longest, of.steps)


def _sampled(pair: Pair, logp: Tensor, recorded: Recorded) -> Pair:
    """A pair that samples from other distributions `[K, S, V]` and writes their log-probs, or those it had."""
    return replace(pair, sampled=logp, logp_mu=logp if recorded == "processed" else pair.logp_mu)


def _heated(temperature: float, *, recorded: Recorded) -> Maker:
    """Sampled at another temperature; the log-probs `recorded` are those of it, or raw ones."""

    def make(seed: int, tokens: int) -> list[Sample]:
        of = setting(seed)
        hot = pairs.tempered(of.pair.sampled, temperature)
        return _dump(of, _sampled(of.pair, hot, recorded), seed, tokens)

    return make


def _truncated(keep: Callable[[Tensor], Tensor], *, recorded: Recorded) -> Maker:
    """Sampled from what a filter keeps; the log-probs `recorded` are renormalised over it, or raw ones."""

    def make(seed: int, tokens: int) -> list[Sample]:
        of = setting(seed)
        return _dump(of, _sampled(of.pair, keep(of.pair.sampled), recorded), seed, tokens)

    return make


def _behind(updates: int) -> Maker:
    """Sampled by weights of so many optimiser steps ago, whatever the versions say."""

    def make(seed: int, tokens: int) -> list[Sample]:
        of = setting(seed, "bf16")
        return _dump(of, _moved(of.policy, of.engines, of.block, updates), seed, tokens)

    return make


@lru_cache(maxsize=pairs.KEPT)
def _moved(policy: str, engines: str, block: int, updates: int) -> Pair:
    """A pair whose trainer is so many optimiser steps ahead."""
    ahead = pairs.trained(policy, block, updates)
    return pairs.between(pairs.settings(policy, engines), block, pairs.start(policy, block), ahead)


def _corrupt(seed: int, tokens: int) -> list[Sample]:
    """Sampled by weights of which one expert is another's."""
    of = setting(seed, "bf16")
    weights = pairs.start(of.policy, of.block)
    wrong = pairs.corrupted(weights, layer=0, expert=seed % weights["down"].shape[2])
    return _dump(of, pairs.between(pairs.settings(of.policy, of.engines), of.block, wrong, weights), seed, tokens)


def _rounded(seed: int, tokens: int) -> list[Sample]:
    """Routers of the rollout engine in bf16, all else in float64."""
    of = setting(seed, "exact")
    weights = pairs.start(of.policy, of.block)
    sim = pairs.settings(of.policy, of.engines)
    return _dump(of, pairs.between(sim, of.block, pairs.rounded_router(weights), weights), seed, tokens)


def _unreplayed(seed: int, tokens: int) -> list[Sample]:
    """Log-probs of a trainer that routes by itself, in a run that claims R3."""
    of = setting(seed)
    return _dump(of, of.pair, seed, tokens)


def _current(seed: int, tokens: int) -> list[Sample]:
    """A ratio of the dump that is made of the trainer's log-probs after its update."""
    of = setting(seed)
    after = replace(of.pair, logp_old=_moved(of.policy, of.engines, of.block, 1).logp_old)
    both = zip(_dump(of, of.pair, seed, tokens), _dump(of, after, seed, tokens), strict=True)
    return [_with_ratio(*each) for each in both]


def _with_ratio(sample: Sample, after: Sample) -> Sample:
    assert after.logp_old is not None
    assert sample.logp_mu is not None
    ratio = torch.where(sample.mask, (after.logp_old - sample.logp_mu).exp(), 0.0).float().double()
    return replace(sample, columns={"importance_ratio": ratio})


def _mixed(updates: int) -> Maker:
    """Weights of the rollout engine replaced in the middle of every response; each token's version is right."""

    def make(seed: int, tokens: int) -> list[Sample]:
        of = setting(seed, "bf16")
        old = _moved(of.policy, of.engines, of.block, updates)
        ahead = pairs.trained(of.policy, of.block, updates)
        new = pairs.between(pairs.settings(of.policy, of.engines), of.block, ahead, ahead)
        return _switched(pairs.beside(old, new), of, seed, tokens)

    return make


def _switched(pair: Pair, of: Setting, seed: int, tokens: int) -> list[Sample]:
    """A dump of a pair whose first draw says the beginning of every response, and its second the rest."""
    prompts, keys, cut = asked(pair.sim, seed, tokens, of.longest)
    first = max(1, of.longest // 4)
    head = draw(pair.contexts, pair.sampled[:1], prompts[None], keys[None], first)
    last = (head.contexts[0, :, -1], head.tokens[0, :, -1])
    goes_on = pair.contexts.follow[last].clamp(max=len(pair.contexts.follow) - 1)
    there = replace(pair.contexts, start=goes_on)
    again = noise.combine(keys, SALT)
    rest = draw(there, pair.sampled[1:], torch.arange(len(keys))[None], again[None], max(1, of.longest - first))
    running = head.mask[0, :, -1:] & (pair.contexts.follow[last] < len(pair.contexts.follow))[:, None]
    joined = {
        "contexts": torch.where(running, rest.contexts[0], 0),
        "tokens": torch.where(running, rest.tokens[0], 0),
        "mask": running & rest.mask[0],
    }
    walks = Walks(rewards=rest.rewards, **{k: torch.cat([getattr(head, k)[0], x], -1)[None] for k, x in joined.items()})
    which = (torch.arange(walks.tokens.shape[-1]) >= first).long().expand(len(keys), -1)
    drawn = Drawn(seed=seed, prompts=prompts, keys=keys, cut=cut, walks=walks, draws=which)
    return [_with_versions(sample, first) for sample in samples(pair, drawn, of.steps)]


def _with_versions(sample: Sample, first: int) -> Sample:
    """The first so many response tokens are of the version before that of the step."""
    later = (sample.mask.cumsum(-1) > first).long()
    return replace(sample, version=torch.where(sample.mask, sample.step - 1 + later, -1))


BOTH_VERSIONS = "the log-probs of one batch at the weights of either engine"

REQUEST = "the sampling parameters of the engine's requests; policies that are nearly certain show little of them"

FAULTS: dict[str, Fault] = {
    **{
        f"temperature {t} processed": Fault(
            make=_heated(t, recorded="processed"), detector="temperature", needs=REQUEST
        )
        for t in (1.1, 1.03, 0.97, 0.9, 0.7)
    },
    **{
        f"temperature {t} raw": Fault(make=_heated(t, recorded="raw"), detector="sampling not recorded", needs=REQUEST)
        for t in (1.1, 0.9, 0.7)
    },
    **{
        f"top-p {p} processed": Fault(
            make=_truncated(partial(pairs.nucleus, mass=p), recorded="processed"), detector="truncation", needs=REQUEST
        )
        for p in (0.99, 0.95, 0.9)
    },
    "top-k 4 processed": Fault(
        make=_truncated(partial(pairs.largest, count=4), recorded="processed"), detector="truncation", needs=REQUEST
    ),
    **{
        f"top-p {p} raw": Fault(
            make=_truncated(partial(pairs.nucleus, mass=p), recorded="raw"),
            detector="sampling not recorded",
            needs=REQUEST,
        )
        for p in (0.95, 0.9)
    },
    **{
        f"{n} updates behind": Fault(
            make=_behind(n), detector="large for its precision", known=Known(precision="bf16"), needs=BOTH_VERSIONS
        )
        for n in (1, 4, 16, 64)
    },
    "corrupt expert": Fault(
        make=_corrupt, detector="large for its precision", known=Known(precision="bf16"), needs=BOTH_VERSIONS
    ),
    "router in bf16": Fault(
        make=_rounded,
        detector="router precision",
        known=Known(precision="fp32"),
        needs="the routers' weights of both engines",
    ),
    "routes not replayed": Fault(
        make=_unreplayed,
        detector="routes not replayed",
        known=Known(replay="R3"),
        needs="the trainer's receipts: rows replayed, and rows that replay has changed",
    ),
    "current for old": Fault(
        make=_current, detector="other ratio", needs="a ratio of a token that the update has moved"
    ),
    **{
        f"versions mixed, {n} updates": Fault(make=_mixed(n), detector="stale weights", needs=BOTH_VERSIONS)
        for n in (1, 4, 16)
    },
}
"""By name."""
