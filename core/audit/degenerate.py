"""Columns that are log-probs and cannot be those of two engines: zeros, copies, constants; advantages without effect.

Shapes: B responses, L positions. μ is the rollout engine, π_old the trainer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk

from .columns import NAMES, log_probs, sampled
from .finding import EACH, Detector, Finding, Known, Sums, first
from .odds import LEVEL

FAR = (
    1.0  # nats. A float32 log-prob of 0 leaves 2^-25 to all other tokens: to leave them 0.63 takes 18 nats of a logit.
)
# It is what is left of a token alone in its nucleus, too, but no one samples with top-p below 0.37
UNCERTAIN = (
    1e-3  # nats below 0: two engines that round give such a token the same float32 number now and then, not always
)
FEWEST = 50  # uncertain tokens; were every other one equal by rounding, all would be with 2^-50
UNREWARDED = 1000  # responses; were a group in five of eight responses of mixed reward, none would be with 1e-12


def zero_sums(chunk: Chunk) -> Sums:
    """Where one side says 0 and the other is far from it."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    seen, mu, old = sampled(chunk), chunk.logp_mu, chunk.logp_old
    apart = {"rollout": seen & (mu == 0) & (old < -FAR), "trainer": seen & (old == 0) & (mu < -FAR)}
    counts = {side: hit.sum() for side, hit in apart.items()}
    other = {f"{side} other": torch.where(hit, mu + old, 0.0).sum() for side, hit in apart.items()}
    zero = {f"{side} not 0": (seen & (x != 0)).sum() for side, x in (("rollout", mu), ("trainer", old))}
    hits = torch.stack([hit.any(-1) for hit in apart.values()])
    return counts | other | zero | {"tokens": seen.sum(), EACH + "hits": hits.any(0)}


def judge_zero(sums: Sums, known: Known) -> Finding | None:
    """Any, in a column that is not 0 throughout."""
    for side, other in (("rollout", "trainer"), ("trainer", "rollout")):
        n = int(sums[side])
        if n and int(sums[f"{side} not 0"]):
            return Finding(
                fault="log-probs of 0 on the mask",
                evidence=f"{n} of {int(sums['tokens'])} tokens of the mask have log-prob 0 in the {side} and "
                f"{float(sums[f'{side} other']) / n:.3g} on average in the {other}.",
                questions=(
                    "are tokens of tools or of the environment on the mask?",
                    f"does the {side} write 0 where it has no log-prob, or where top-k leaves one token?",
                ),
                place=first(sums[EACH + "hits"]),
            )
    return None


def judge_all_zero(sums: Sums, known: Known) -> Finding | None:
    """A whole column of 0 where the other side is far from it."""
    for side, other in (("trainer", "rollout"), ("rollout", "trainer")):
        if not int(sums[f"{side} not 0"]) and int(sums[side]):
            forced = " (`force_on_policy_ratio` writes such a column)" if side == "trainer" else ""
            return Finding(
                fault="log-probs all 0",
                evidence=f"all {int(sums['tokens'])} log-probs of the {side} are 0{forced}, those of the {other} are "
                "not: this is no mismatch, and no ratio can be made of it.",
                questions=(
                    f"did the {side} compute log-probs in this run at all?",
                    "what does the loss divide by?",
                ),
            )
    return None


def equal_sums(chunk: Chunk) -> Sums:
    """Uncertain tokens, and those to which both sides give the same number in float32."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    mu, old = chunk.logp_mu, chunk.logp_old
    seen = sampled(chunk) & (torch.minimum(mu, old) < -UNCERTAIN)
    return {"tokens": seen.sum(), "equal": (seen & (mu.float() == old.float())).sum()}


def judge_equal(sums: Sums, known: Known) -> Finding | None:
    """All of enough."""
    n = int(sums["tokens"])
    if n < FEWEST or int(sums["equal"]) < n:
        return None
    return Finding(
        fault="identical log-probs",
        evidence=f"D = 0 at all {n} tokens below {-UNCERTAIN:g} nats: one array was copied into the other, or the "
        "engines are bitwise the same.",
        questions=(
            "are trainer and rollout engine run bitwise alike (the same kernels, the same batches)?",
            "does the trainer take the rollout's log-probs as its own, so that every ratio is 1?",
        ),
    )


def constant_sums(chunk: Chunk) -> Sums:
    """Uncertain tokens of each side, and those with another number than the sampled token before."""
    sums, seen = Sums(), sampled(chunk)
    for side, x in log_probs(chunk).items():
        values = x[seen & x.isfinite()]
        sums[f"{side} tokens"] = (values < -UNCERTAIN).sum()
        sums[f"{side} changes"] = (values[1:] != values[:-1]).sum()
        sums[f"{side} sum"] = values.sum()
    return sums


def judge_constant(sums: Sums, known: Known) -> Finding | None:
    """No change in a column."""
    for side in NAMES:
        n = int(sums.get(f"{side} tokens", torch.tensor(0)))
        if n >= FEWEST and not int(sums[f"{side} changes"]):
            return Finding(
                fault="constant log-probs",
                evidence=f"the {n} log-probs of the {side} are one number, {float(sums[f'{side} sum']) / n:.4g}.",
                questions=(
                    f"is that the number with which the {side} fills up what it has not computed?",
                    "is it log(1 / vocabulary)?",
                ),
            )
    return None


def duplicate_sums(chunk: Chunk) -> Sums:
    """A hash of the tokens and log-probs of every response, and how likely the response was: Σ log μ."""
    assert chunk.logp_mu is not None
    seen = sampled(chunk) & chunk.logp_mu.isfinite()
    mu = torch.where(seen, chunk.logp_mu, 0.0)
    mixed = chunk.tokens * _odd(1) + mu.view(torch.int64) * _odd(2)
    place = torch.arange(1, seen.shape[-1] + 1) * _odd(3)
    inside = torch.arange(seen.shape[-1]) < chunk.lengths[:, None]
    word = (mixed ^ (mixed >> 29)) * (place | 1)
    return {EACH + "hash": torch.where(inside, word, 0).sum(-1), EACH + "log p": mu.sum(-1)}


def _odd(n: int) -> int:
    """The n-th of a few odd 64-bit constants."""
    return (0, 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85, 0x27BB2EE687B0B0FD)[n]


def judge_duplicates(sums: Sums, known: Known) -> Finding | None:
    """Pairs that are too unlikely to be sampled twice: p x responses below the level."""
    log_p, hashes = sums[EACH + "log p"], sums[EACH + "hash"]
    rare = log_p < math.log(LEVEL) - math.log(len(log_p))
    values, counts = torch.unique(hashes[rare], return_counts=True)
    repeated = values[counts > 1]
    if not len(repeated):
        return None
    second = _seen_before(hashes, rare)
    return Finding(
        fault="duplicated responses",
        evidence=f"{int(second.sum())} of {len(hashes)} responses are, token by token and log-prob by log-prob, "
        f"another one; the likeliest of them had log p = {float(log_p[second].max()):.3g}.",
        questions=(
            "is a batch filled up with copies of its own responses?",
            "were two files of one rank, or one step twice, read?",
        ),
        place=first(second),
    )


def _seen_before(hashes: Tensor, rare: Tensor) -> Tensor:
    """Whether a rare response has the hash of an earlier one, bool `[B]`."""
    order = torch.argsort(hashes, stable=True)
    same = torch.zeros_like(rare)
    same[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    return same & rare


def advantage_sums(chunk: Chunk) -> Sums:
    """Advantages that are no number, those that are not 0, and what the rewards were."""
    assert chunk.advantage is not None
    seen, advantage = sampled(chunk), chunk.advantage
    bad = seen & ~advantage.isfinite()
    counted = seen.any(-1)
    nothing = torch.full((len(counted),), torch.nan, dtype=torch.float64)
    return {
        "tokens": seen.sum(),
        "bad": bad.sum(),
        "not 0": (seen & (advantage != 0)).sum(),
        EACH + "counted": counted,
        EACH + "reward": nothing if chunk.rewards is None else chunk.rewards,
        EACH + "group": torch.full((len(counted),), -1) if chunk.groups is None else chunk.groups,
        EACH + "hits": bad.any(-1),
    }


def judge_advantage_bad(sums: Sums, known: Known) -> Finding | None:
    """Any."""
    n = int(sums["bad"])
    if not n:
        return None
    return Finding(
        fault="advantages that are no numbers",
        evidence=f"{n} of {int(sums['tokens'])} advantages on the mask are null, NaN or infinite.",
        questions=(
            "are advantages divided by the standard deviation of a group whose rewards are equal?",
            "are the rewards of all responses numbers?",
        ),
        place=first(sums[EACH + "hits"]),
    )


def judge_advantage_zero(sums: Sums, known: Known) -> Finding | None:
    """All 0 although rewards differ inside a group; without rewards, over many responses."""
    counted = sums[EACH + "counted"]
    if int(sums["not 0"]) or not counted.any():
        return None
    mixed = _mixed_groups(sums[EACH + "reward"][counted], sums[EACH + "group"][counted])
    unknown = bool(sums[EACH + "reward"].isnan().all()) and int(counted.sum()) >= UNREWARDED
    if not mixed and not unknown:
        return None
    why = f"though rewards differ inside {mixed} groups" if mixed else "and no reward tells why"
    return Finding(
        fault="advantages all 0",
        evidence=f"the advantages of all {int(counted.sum())} responses are 0, {why}: nothing is learned from them.",
        questions=(
            "is the advantage computed after the dump is written?",
            "are groups of one response compared with themselves?",
        ),
    )


def _mixed_groups(rewards: Tensor, groups: Tensor) -> int:
    """Groups of known rewards that are not all equal."""
    known = rewards.isfinite() & (groups >= 0)
    if not known.any():
        return 0
    _, place = torch.unique(groups[known], return_inverse=True)
    low = torch.full((int(place.max()) + 1,), torch.inf, dtype=torch.float64)
    lowest = low.scatter_reduce(0, place, rewards[known], "amin")
    highest = (-low).scatter_reduce(0, place, rewards[known], "amax")
    return int((highest > lowest).sum())


BOTH = ("logp_mu", "logp_old")
DETECTORS = (
    Detector(
        fault="log-probs all 0",
        stage=3,
        needs=BOTH,
        measure=zero_sums,
        judge=judge_all_zero,
        rule=f"every log-prob of one side is 0 and some token has less than {-FAR:g} nats on the other",
    ),
    Detector(
        fault="constant log-probs",
        stage=3,
        needs=("logp_mu",),
        measure=constant_sums,
        judge=judge_constant,
        rule=f"one number below {-UNCERTAIN:g} nats for all of {FEWEST} or more tokens of a column",
    ),
    Detector(
        fault="log-probs of 0 on the mask",
        stage=3,
        needs=BOTH,
        measure=zero_sums,
        judge=judge_zero,
        rule=f"any token with log-prob 0 on one side and less than {-FAR:g} nats on the other, 18 nats of a logit "
        "apart; 0 on both sides is p = 1",
    ),
    Detector(
        fault="identical log-probs",
        stage=3,
        needs=BOTH,
        measure=equal_sums,
        judge=judge_equal,
        rule=f"both sides give the same float32 number to all of {FEWEST} or more tokens below {-UNCERTAIN:g} nats",
    ),
    Detector(
        fault="duplicated responses",
        stage=3,
        needs=("logp_mu",),
        measure=duplicate_sums,
        judge=judge_duplicates,
        rule=f"two responses with the same tokens and log-probs, so unlikely that p x responses < {LEVEL:g}",
    ),
    Detector(
        fault="advantages that are no numbers",
        stage=3,
        needs=("advantage",),
        measure=advantage_sums,
        judge=judge_advantage_bad,
        rule="any advantage on the mask that is null, NaN or infinite",
    ),
    Detector(
        fault="advantages all 0",
        stage=3,
        needs=("advantage",),
        measure=advantage_sums,
        judge=judge_advantage_zero,
        rule="every advantage is 0 while rewards differ inside a group, or, where no rewards are known, in "
        f"{UNREWARDED} responses or more",
    ),
)
