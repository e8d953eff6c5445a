"""Faults put into good samples: each that has happened, at the strength in which it did, and the detector that names it.

Shapes: L positions of a sample, M MoE layers, K experts a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.formats.sample import Sample

Inject = Callable[[list[Sample], torch.Generator], list[Sample]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that can be made.

    Args:
        name: of the fault and its strength.
        inject: the samples with it; those given are left as they are.
        found_by: the detector's fault; None where a dump does not show it.
        extra: what would show it, where a dump does not.
        needs: columns of the samples that it changes.
    """

    name: str
    inject: Inject
    needs: tuple[str, ...]
    found_by: str | None
    extra: str | None = None


def each(change: Callable[[Sample, torch.Generator], Sample], share: float = 1.0) -> Inject:
    """A change of every sample, or of a share of them and of one at least."""

    def inject(samples: list[Sample], g: torch.Generator) -> list[Sample]:
        chosen = torch.rand(len(samples), generator=g) < share
        if not chosen.any():
            chosen[int(torch.randint(len(samples), (), generator=g))] = True
        return [change(s, g) if hit else s for s, hit in zip(samples, chosen.tolist(), strict=True)]

    return inject


def column(name: str, change: Callable[[Tensor, Sample, torch.Generator], Tensor], share: float = 1.0) -> Inject:
    """A change of one column."""

    def changed(sample: Sample, g: torch.Generator) -> Sample:
        return replace(sample, **{name: change(getattr(sample, name), sample, g)})  # type: ignore[arg-type]

    return each(changed, share)


def shift(x: Tensor, by: int, fill: float = 0.0) -> Tensor:
    """A column moved to later positions, `[L, ...]`."""
    out = torch.full_like(x, fill)
    if abs(by) < len(x):
        source, target = (slice(None, -by), slice(by, None)) if by > 0 else (slice(-by, None), slice(None, by))
        out[target] = x[source]
    return out


def masked(x: Tensor, sample: Sample) -> Tensor:
    """0 off the mask."""
    return torch.where(sample.mask, x, 0.0)


def some(mask: Tensor, share: float, g: torch.Generator) -> Tensor:
    """So many of the places, and one at least, bool like the mask."""
    hit = mask & (torch.rand(mask.shape, generator=g) < share)
    places = mask.nonzero().flatten()
    if not hit.any() and len(places):
        hit[places[int(torch.randint(len(places), (), generator=g))]] = True
    return hit


def partners(name: str) -> Inject:
    """A column of the next sample, laid from the first sampled token on; 0 where that one is shorter."""

    def inject(samples: list[Sample], g: torch.Generator) -> list[Sample]:
        return [replace(a, **{name: _laid(getattr(b, name)[b.mask], a)}) for a, b in zip(samples, samples[1:] + samples[:1], strict=True)]  # type: ignore[arg-type]  # fmt: skip

    return inject


def _laid(values: Tensor, sample: Sample) -> Tensor:
    out = torch.zeros(len(sample.tokens), dtype=values.dtype)
    places = sample.mask.nonzero().flatten()[: len(values)]
    out[places] = values[: len(places)]
    return out


def _ends(sample: Sample) -> Tensor:
    """Where the rows of a sample are real: all but the last, bool `[L]`."""
    return torch.arange(len(sample.tokens)) < len(sample.tokens) - 1


def _nulls(x: Tensor, sample: Sample, g: torch.Generator, share: float) -> Tensor:
    return torch.where(some(sample.mask, share, g), torch.nan, x)


def _repeated_batch(samples: list[Sample], g: torch.Generator) -> list[Sample]:
    """A batch filled up with an eighth of its own responses."""
    return samples + samples[: max(1, len(samples) // 8)]


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


def _coarse(kind: torch.dtype) -> Callable[[Tensor, Sample, torch.Generator], Tensor]:
    return lambda x, sample, g: x.to(kind).double()


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
        needs=("advantage", "rewards", "groups"),
        found_by="advantages all 0",
    ),
)
