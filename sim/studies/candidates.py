"""What may warn of a collapse: quantities that a run logs, how they are read, and what they point to.

The sides and scales follow from what a quantity is, before any run was seen. Where the danger could lie on either side,
both are candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from firstorder.core.runs.alarm_table import Alarm, HeldOut, Of, Threshold

WINDOW, LONG = 4, 12  # updates of a mean, and of a slope
Side = Literal["high", "low"]
Scale = Literal["log", "linear"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to read a quantity, with the arguments of `Alarm`; `points` is a key of `POINTS`."""

    quantity: str
    per: str | None
    of: Of
    side: Side
    scale: Scale
    points: str

    @property
    def name(self) -> str:
        """For people, and unique.

        Example:
            >>> next(iter(CANDIDATES)).name
            'kl high'
        """
        what = self.quantity if self.per is None else f"{self.quantity} / {self.per}"
        words = {"level": "", "size": "size of ", "change": "change of ", "slope": "slope of "}
        return f"{words[self.of]}{what} {self.side}"

    @property
    def window(self) -> int:
        """Updates."""
        return LONG if self.of == "slope" else WINDOW

    def alarm(self, threshold: Threshold, held_out: HeldOut) -> Alarm:
        """It as an alarm."""
        cause, remedy = POINTS[self.points]
        return Alarm(
            name=self.name,
            quantity=self.quantity,
            per=self.per,
            of=self.of,
            window=self.window,
            side=self.side,
            scale=self.scale,
            threshold=threshold,
            cause=cause,
            remedy=remedy,
            held_out=held_out,
        )


POINTS: Mapping[str, tuple[str, str]] = {
    "engines": (
        "the two engines drift apart on what is sampled",
        "correct for it (ratio.of = theta/mu), replay the experts (router_replay.mode = R3), "
        "or give the rollout engine finer numerics",
    ),
    "sequence": (
        "whole responses have ratios far from 1: the first-order objective leaves out much of the reward",
        "bring the engines closer, lower optimizer.lr or schedule.minibatches, or shorten the responses",
    ),
    "bias": (
        "the error of the update points one way, step after step",
        "use an update without this bias: ratio.of = theta/mu, or a correction",
    ),
    "entropy": (
        "the policy loses its entropy, or scatters, faster than runs that last",
        "lower optimizer.lr, correct for the engines (ratio.of = theta/mu), or bound the ratio (clip.kind = minirl)",
    ),
    "step": (
        "updates are larger than those of runs that last",
        "lower optimizer.lr, or optimizer.max_grad_norm",
    ),
    "stale": (
        "the policy leaves the one that sampled within a rollout",
        "lower schedule.minibatches or optimizer.lr, or bound the ratio (clip.kind = minirl)",
    ),
    "variance": (
        "the gradient is mostly noise",
        "raise schedule.prompts or schedule.group_size, or lower optimizer.lr",
    ),
    "routes": (
        "the engines choose other experts more and more often",
        "replay the experts (router_replay.mode = R3), or give the rollout engine finer numerics",
    ),
    "signal": (
        "the rewards of a batch differ less and less: most responses fail alike, and little is left to learn from",
        "go back to a checkpoint and lower optimizer.lr, or bring the engines closer (router_replay.mode = R3)",
    ),
    "reward": (
        "the reward falls already",
        "go back to a checkpoint, and lower optimizer.lr or bring the engines closer",
    ),
}
"""What a quantity points to, and what to change."""


def _both(
    quantity: str, side: Side, points: str, *, per: str | None = None, of: tuple[Of, ...] = ("level", "change")
) -> Iterator[Candidate]:
    """A positive quantity, read in logarithms."""
    for each in of:
        yield Candidate(quantity=quantity, per=per, of=each, side=side, scale="log", points=points)


def _signed(
    quantity: str, side: Side, points: str, *, per: str | None = None, of: tuple[Of, ...] = ("level",)
) -> Iterator[Candidate]:
    """A quantity with a sign, or a slope."""
    for each in of:
        yield Candidate(quantity=quantity, per=per, of=each, side=side, scale="linear", points=points)


CANDIDATES: tuple[Candidate, ...] = (
    *_signed("kl", "high", "engines"),
    *_both("k3_kl", "high", "engines"),
    *_both("chi2_token", "high", "engines"),
    *_both("token_eff_sample_size", "low", "engines"),
    *_both("chi2_seq", "high", "sequence"),
    *_both("seq_eff_sample_size", "low", "sequence"),
    *_both("seq_log_ratio_std", "high", "sequence"),
    *_both("ppl_ratio", "high", "engines"),
    *_both("ratio_tail_2", "high", "engines"),
    *_both("ratio_tail_5", "high", "engines"),
    *_both("second_order_remainder", "high", "sequence", of=("size",)),
    *_both("update/second_order_remainder", "high", "sequence", of=("size",)),
    *_both("clip_upper", "high", "stale", of=("level",)),
    *_both("clip_lower", "high", "stale", of=("level",)),
    *_both("update/grad_norm", "high", "step"),
    *_both("update/entropy", "low", "entropy"),
    *_both("update/entropy", "high", "entropy"),
    *_signed("update/entropy", "low", "entropy", of=("slope",)),
    *_signed("update/entropy", "high", "entropy", of=("slope",)),
    *_both("response_length", "low", "reward", of=("change",)),
    *_both("reward_std", "low", "signal"),
    *_both("reward", "low", "reward", of=("change",)),
    *_signed("reward", "low", "reward", of=("slope",)),
    *_both("kl_flipped", "high", "routes"),
    *_signed("kl_failing", "high", "bias", per="kl_succeeding"),
    *_signed("update/half_batch_cosine", "low", "variance"),
    *_signed("exact/bias_coherence", "high", "bias"),
    *_both("route/flip_rate", "high", "routes"),
    *_both("route/thin_margin", "high", "routes"),
)
