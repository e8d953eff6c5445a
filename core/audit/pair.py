"""Two engines on the same tokens: whether they compute the same log-probs, and if not, why, before training starts.

    found = check_pair(tokens=tokens, mask=mask, logp_mu=rollout_logprobs, score=score)
    print(found.line)
    found.require()

Shapes: B responses, L positions (prompt and response, padded at the end), M MoE layers, K experts a token.

Position t holds token t and log p(token t | tokens < t); what stands off the mask is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import DataError
from firstorder.core.formats.chunk import Chunk, pad
from firstorder.core.formats.sample import ROUTED, Sample
from firstorder.core.routing import flips

from . import auditor
from .finding import Detector, Finding, Known
from .judge import judge_all
from .rescoring import (
    RESPONSES,
    Asked,
    Score,
    at_another_temperature,
    disagrees_with_itself,
    hangs_on_padding,
    scored,
)

DETECTORS = tuple(each for each in auditor.DETECTORS if each.fault != "identical log-probs")  # some engines are
LIMIT = 0.2  # nats a token: mean |D| of engines in bfloat16 with the same weights stays below it, see docs/engines.md
LAYOUT = 4  # the last stage of faults of layout, after which no log-prob says anything of the engines
SEMANTICS = 5  # the stage of faults of the distributions that are compared
LARGEST = 300.0  # nats of D in k3, whose exponential is finite
TIMES = 4.0  # times as far apart where experts differ, as a flip moves a log-prob by more than rounding does
FEWEST = 10  # tokens on either side of that comparison


@dataclass(frozen=True, kw_only=True)
class PairCheck:
    """What a comparison of two engines says.

    Args:
        findings: the causes that were found, the one that explains the most first; none where the pair passes.
        apart: mean |D|, D = log π - log μ, nats a token.
        k3: mean of exp(D) - D - 1, nats a token.
        tokens: that were compared.
        responses: that they are of.
        left_out: sampled tokens without two finite log-probs.
    """

    findings: tuple[Finding, ...]
    apart: float
    k3: float
    tokens: int
    responses: int
    left_out: int

    @property
    def passed(self) -> bool:
        """No cause was found."""
        return not self.findings

    @property
    def cause(self) -> str | None:
        """The name of the one that explains the most."""
        return self.findings[0].fault if self.findings else None

    @property
    def line(self) -> str:
        """All of it for people, in one line."""
        if not self.tokens:
            return f"{self.findings[0].fault}: {self.findings[0].evidence}. {' '.join(self.findings[0].questions)}"
        left = f", {self.left_out:,} left out" if self.left_out else ""
        where = f"{self.tokens:,} tokens of {self.responses:,} responses{left}"
        seen = f"mean |D| {self.apart:.2g} nats, k3 {self.k3:.2g} over {where}"
        if self.passed:
            same = "" if self.apart else "; the two are equal to the last digit, or one is a copy of the other"
            return f"pass: {seen}{same}"
        first = self.findings[0]
        return f"{first.fault}: {first.evidence} ({seen}). {' '.join(first.questions)}"

    def require(self) -> None:
        """Stop unless the pair passed.

        Raises:
            DataError: with the line.
        """
        if not self.passed:
            raise DataError(self.line)


def check_pair(
    *,
    tokens: Tensor,
    mask: Tensor,
    logp_mu: Tensor,
    logp_pi: Tensor | None = None,
    score: Score | None = None,
    entropy: Tensor | None = None,
    routes: Tensor | None = None,
    routes_pi: Tensor | None = None,
    temperature: float = 1.0,
    limit: float = LIMIT,
    known: Known | None = None,
    detectors: Sequence[Detector] = DETECTORS,
) -> PairCheck:
    """Compare the log-probs of a rollout engine with a trainer's, and name the cause where they differ.

    Args:
        tokens: int64 `[B, L]`.
        mask: bool `[B, L]`, True on the tokens that the rollout engine sampled.
        logp_mu: `[B, L]` nats, as the rollout engine reports them.
        logp_pi: `[B, L]` nats, as the trainer scores them; made by `score` where it is not given.
        score: the trainer, `score(tokens, lengths, temperature) -> [B, L]`, which tells more than its log-probs alone.
        entropy: `[B, L]` nats, of the trainer's distributions.
        routes: int `[B, L, M, K]` of the rollout engine, row t that of token t, -1 where missing.
        routes_pi: int `[B, L, M, K]` of the trainer.
        temperature: that was sampled at, and that `score` is asked at.
        limit: largest mean |D| of engines with the same weights, nats a token.
        known: of the run: replay, precision, experts.
        detectors: of faults that the arrays show.

    Raises:
        DataError: shapes differ, or there is nothing to compare.
    """
    if logp_pi is None and score is None:
        raise DataError("a pair needs the trainer's log-probs or a function that scores them; give logp_pi or score")
    mask, mu = mask.cpu().bool(), logp_mu.detach().cpu().double()
    _check_shapes(tokens, mask=mask, logp_mu=mu, logp_pi=logp_pi, entropy=entropy, routes=routes, routes_pi=routes_pi)
    lengths = (mask * torch.arange(1, mask.shape[-1] + 1)).amax(-1).clamp(min=1)
    ask = None if score is None else _on(tokens.device, score)
    if ask is None or logp_pi is not None:
        assert logp_pi is not None
        pi = logp_pi.detach().cpu().double()
    else:
        pi = scored(ask, tokens.cpu(), lengths, temperature)
    mu, pi = (torch.where(mask, x, 0.0) for x in (mu, pi))
    columns = {"logp_mu": mu, "logp_old": pi, "entropy": entropy, "routes": routes, "routes_old": routes_pi}
    chunk = _chunk(tokens.cpu(), mask, lengths, {name: x for name, x in columns.items() if x is not None})
    found, _ = judge_all([chunk], detectors, known)
    stages: dict[str, float] = {detector.fault: detector.stage for detector in detectors}
    if not found and not chunk.usable.any():
        raise DataError("no sampled token has two finite log-probs; give a batch that both engines have scored")
    staged = [(stages[finding.fault], finding) for finding in found]
    if ask is not None and not any(stage <= LAYOUT for stage, _ in staged):
        staged += _asked(chunk, ask, temperature, limit)
    ordered = {finding.fault: finding for _, finding in sorted(staged, key=lambda each: each[0])}
    return _result(chunk, tuple(ordered.values()), limit)


def _asked(chunk: Chunk, score: Score, temperature: float, limit: float) -> list[tuple[float, Finding]]:
    """What the trainer says when it is asked again, with the stages that it belongs to."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    some = chunk.lengths.argsort()[torch.linspace(0, len(chunk.lengths) - 1, min(RESPONSES, len(chunk.lengths))).long()]
    length = int(chunk.lengths[some].max())
    tokens, mask, mu, pi = (x[some, :length] for x in (chunk.tokens, chunk.usable, chunk.logp_mu, chunk.logp_old))
    asked = Asked(
        tokens=tokens,
        lengths=chunk.lengths[some],
        mask=mask,
        logp_mu=mu,
        logp_pi=pi,
        score=score,
        temperature=temperature,
        limit=limit,
    )
    # what an array shows beyond doubt, as truncation, comes before a temperature, which is a fit
    answers = {
        LAYOUT + 0.1: disagrees_with_itself(asked),
        LAYOUT + 0.2: hangs_on_padding(asked),
        SEMANTICS + 0.1: at_another_temperature(asked),
    }
    return [(stage, answer) for stage, answer in answers.items() if answer is not None]


def _result(chunk: Chunk, findings: tuple[Finding, ...], limit: float) -> PairCheck:
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    d = (chunk.logp_old - chunk.logp_mu)[chunk.usable]
    apart = float(d.abs().mean())
    if apart > limit and not findings:
        findings = (_far(chunk, d, apart, limit),)
    return PairCheck(
        findings=findings,
        apart=apart,
        k3=float((d.clamp(max=LARGEST).expm1() - d).mean()),
        tokens=len(d),
        responses=int(chunk.usable.any(-1).sum()),
        left_out=int(chunk.mask.sum()) - len(d),
    )


def _far(chunk: Chunk, d: Tensor, apart: float, limit: float) -> Finding:
    """Why engines are further apart than the limit: their routers, where the tokens with other experts carry it."""
    questions = (
        "Does the rollout engine hold the weights that the trainer holds now?",
        "Is it of a lower precision than the limit is for?",
    )
    if chunk.routes is not None and chunk.routes_old is not None:
        there = ((chunk.routes >= 0) & (chunk.routes_old >= 0)).all(-1).all(-1)
        moved = flips(chunk.routes, chunk.routes_old).any(-1) & there
        made, known = (torch.roll(x, 1, dims=-1)[chunk.usable] for x in (moved, there))  # row t - 1 made token t
        other, same = d[made].abs(), d[known & ~made].abs()
        if min(len(other), len(same)) >= FEWEST and TIMES * float(same.mean()) <= min(
            float(other.mean()), TIMES * limit
        ):
            return Finding(
                fault="router precision",
                evidence=f"the engines choose other experts at {len(other) / len(d):.1%} of the tokens, and differ "
                f"by {float(other.mean()):.2g} nats there, by {float(same.mean()):.2g} elsewhere, within {limit:.2g}",
                questions=(
                    "In which precision are the router's weights sent to the rollout engine, and its logits computed?",
                    "Are the rollout engine's routes replayed in the trainer?",
                ),
            )
    return Finding(
        fault="other weights",
        evidence=f"log-probs differ by {apart:.2g} nats a token, more than {limit:.2g}, and nothing that was looked "
        "for explains it",
        questions=questions,
    )


def _chunk(tokens: Tensor, mask: Tensor, lengths: Tensor, columns: dict[str, Tensor]) -> Chunk:
    """The batch as detectors read it."""
    samples = []
    for row, length in enumerate(lengths.tolist()):
        own: dict[str, Any] = {name: x[row, :length].cpu() for name, x in columns.items()}
        own |= {name: own[name].to(torch.int16) for name in ROUTED if name in own}
        samples.append(
            Sample(source=f"response {row}", step=0, tokens=tokens[row, :length], mask=mask[row, :length], **own)
        )
    return pad(samples)


def _on(device: torch.device, score: Score) -> Score:
    """The trainer, asked on its device."""
    return lambda tokens, lengths, temperature: score(tokens.to(device), lengths.to(device), temperature)


def _check_shapes(tokens: Tensor, **columns: Tensor | None) -> None:
    if tokens.ndim != 2 or not tokens.numel():
        raise DataError(f"`tokens` must be [batch, length] with at least one of each, got {list(tokens.shape)}")
    for name, column in columns.items():
        if column is not None and column.shape[:2] != tokens.shape:
            raise DataError(f"`{name}` must be {list(tokens.shape)} as the tokens are, got {list(column.shape)}")
