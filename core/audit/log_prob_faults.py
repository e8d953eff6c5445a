"""Faults put into good log-probs, masks and steps, at the strengths in which they happened.

Shapes: L positions of a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from firstorder.core.formats.sample import Sample

from .injecting import Fault, Inject, column, each, masked, shift, some


def partners(name: str) -> Inject:
    """A column of the next sample, laid from the first sampled token on; 0 where that one is shorter."""

    def inject(samples: list[Sample], g: torch.Generator) -> list[Sample]:
        following = samples[1:] + samples[:1]
        laid = [_laid(getattr(b, name)[b.mask], a) for a, b in zip(samples, following, strict=True)]
        return [replace(a, **{name: x}) for a, x in zip(samples, laid, strict=True)]  # type: ignore[arg-type]

    return inject


def _laid(values: Tensor, sample: Sample) -> Tensor:
    out = torch.zeros(len(sample.tokens), dtype=values.dtype)
    places = sample.mask.nonzero().flatten()[: len(values)]
    out[places] = values[: len(places)]
    return out


def _nulls(x: Tensor, sample: Sample, g: torch.Generator, share: float) -> Tensor:
    return torch.where(some(sample.mask, share, g), torch.nan, x)


def _repeated_batch(samples: list[Sample], g: torch.Generator) -> list[Sample]:
    """A batch filled up with an eighth of its own responses."""
    return samples + samples[-max(1, len(samples) // 8) :]


def _mixed_steps(samples: list[Sample], g: torch.Generator) -> list[Sample]:
    """A file of an earlier step at the end."""
    return samples + [replace(s, step=samples[0].step - 1, source=f"{s.source} again") for s in samples[:1]]


def _shifted_mask(sample: Sample, g: torch.Generator) -> Sample:
    return replace(sample, mask=shift(sample.mask, 1))


def _prompt_aligned(x: Tensor, sample: Sample, g: torch.Generator) -> Tensor:
    """Response-aligned log-probs read as if position 0 were the first token of the prompt."""
    return shift(x, -int(sample.mask.int().argmax()))


def _right_aligned(x: Tensor, sample: Sample, g: torch.Generator) -> Tensor:
    """As if padded by 2 to 40 positions on the other side."""
    return masked(shift(x, int(torch.randint(2, 40, (), generator=g))), sample)


def _slices(x: Tensor, sample: Sample, g: torch.Generator) -> Tensor:
    """Three of four tokens of another position: slices that were not put back."""
    late = torch.arange(len(x)) % 4 != 0
    return masked(torch.where(late, shift(x, 1), x), sample)


def _tools_on_mask(sample: Sample, g: torch.Generator) -> Sample:
    """What the environment said is on the mask, or the last token of the prompt; the rollout engine has 0 there."""
    assert sample.logp_old is not None
    first, last = int(sample.mask.int().argmax()), len(sample.tokens) - int(sample.mask.flip(0).int().argmax())
    place = torch.arange(len(sample.tokens))
    mask = (place >= first) & (place < last)
    mask[max(1, first - 1)] |= bool((mask == sample.mask).all())
    said = torch.where(
        mask & ~sample.mask, -3.0 * torch.rand(len(mask), generator=g, dtype=torch.float64), sample.logp_old
    )
    return replace(sample, mask=mask, logp_old=said)


def _coarse(kind: torch.dtype) -> Callable[[Tensor, Sample, torch.Generator], Tensor]:
    return lambda x, sample, g: x.to(kind).double()


BY_THEMSELVES = "longer responses: each must show its own shift, and short ones among noisy engines do not"
BOTH = ("logp_mu", "logp_old")
LOG_PROBS = (
    Fault(
        name="null log-probs, 1 in 1000",
        inject=column("logp_old", lambda x, s, g: _nulls(x, s, g, 1e-3)),
        needs=("logp_old",),
        found_by="null log-probs",
    ),
    Fault(
        name="infinite log-probs, 1 in 1000",
        inject=column("logp_old", lambda x, s, g: torch.where(some(s.mask, 1e-3, g), -torch.inf, x)),
        needs=("logp_old",),
        found_by="null log-probs",
    ),
    Fault(
        name="negative log-likelihoods",
        inject=column("logp_old", lambda x, s, g: -x),
        needs=("logp_old",),
        found_by="log-probs above 0",
    ),
    Fault(
        name="probabilities in place of log-probs",
        inject=column("logp_mu", lambda x, s, g: masked(x.exp(), s)),
        needs=("logp_mu",),
        found_by="probabilities in place of log-probs",
    ),
    Fault(
        name="bfloat16 log-probs",
        inject=column("logp_mu", _coarse(torch.bfloat16)),
        needs=("logp_mu",),
        found_by="log-probs stored coarsely",
    ),
    Fault(
        name="four decimals",
        inject=column("logp_mu", lambda x, s, g: (x * 1e4).round() / 1e4),
        needs=("logp_mu",),
        found_by="log-probs stored coarsely",
    ),
    Fault(name="an earlier step at the end", inject=_mixed_steps, needs=(), found_by="steps out of order"),
    Fault(
        name="off by one",
        inject=column("logp_mu", lambda x, s, g: masked(shift(x, 1), s)),
        needs=BOTH,
        found_by="off by one",
    ),
    Fault(
        name="off by one, early",
        inject=column("logp_mu", lambda x, s, g: masked(shift(x, -1), s)),
        needs=BOTH,
        found_by="off by one",
    ),
    Fault(name="three of four tokens off by one", inject=column("logp_mu", _slices), needs=BOTH, found_by="off by one"),
    Fault(
        name="off by one in a quarter of the responses",
        inject=column("logp_mu", lambda x, s, g: masked(shift(x, 1), s), share=0.25),
        needs=BOTH,
        found_by="off by one",
        extra=BY_THEMSELVES,
    ),
    Fault(
        name="shifted by three",
        inject=column("logp_mu", lambda x, s, g: masked(shift(x, 3), s)),
        needs=BOTH,
        found_by="log-probs shifted",
    ),
    Fault(
        name="laid from the prompt's first token",
        inject=column("logp_mu", _prompt_aligned),
        needs=BOTH,
        found_by="log-probs shifted",
    ),
    Fault(
        name="padded on the other side",
        inject=column("logp_mu", _right_aligned),
        needs=BOTH,
        found_by="log-probs shifted",
        extra=BY_THEMSELVES,
    ),
    Fault(name="shifted mask", inject=each(_shifted_mask), needs=BOTH, found_by="log-probs off the mask"),
    Fault(
        name="log-probs of the next response",
        inject=partners("logp_mu"),
        needs=BOTH,
        found_by="log-probs of another response",
    ),
    Fault(
        name="trainer log-probs all 0",
        inject=column("logp_old", lambda x, s, g: torch.zeros_like(x)),
        needs=BOTH,
        found_by="log-probs all 0",
    ),
    Fault(
        name="one token in a hundred at 0",
        inject=column("logp_mu", lambda x, s, g: torch.where(some(s.mask, 0.01, g), 0.0, x)),
        needs=BOTH,
        found_by="log-probs of 0 on the mask",
    ),
    Fault(
        name="tokens of tools on the mask",
        inject=each(_tools_on_mask),
        needs=BOTH,
        found_by="log-probs of 0 on the mask",
    ),
    Fault(
        name="one array copied",
        inject=each(lambda s, g: replace(s, logp_old=s.logp_mu)),
        needs=BOTH,
        found_by="identical log-probs",
    ),
    Fault(
        name="constant log-probs",
        inject=column("logp_mu", lambda x, s, g: masked(torch.full_like(x, -11.93), s)),
        needs=("logp_mu",),
        found_by="constant log-probs",
    ),
    Fault(name="an eighth of the responses twice", inject=_repeated_batch, needs=BOTH, found_by="duplicated responses"),
    Fault(
        name="NaN advantages in one group in ten",
        inject=column("advantage", lambda x, s, g: torch.full_like(x, torch.nan), share=0.1),
        needs=("advantage",),
        found_by="advantages that are no numbers",
    ),
    Fault(
        name="advantages all 0",
        inject=column("advantage", lambda x, s, g: torch.zeros_like(x)),
        needs=("advantage", "reward", "group"),
        found_by="advantages all 0",
    ),
)
