"""Named quantities of a batch, with formula, unit and source.

Each is built from moments, (numerator, denominator) pairs that any backend can add over ranks before dividing;
`finalise` turns the reduced means into the values people log. D = log π_old - log μ on response tokens,
ρ = exp D. Means are over tokens unless the name says sequence; on an exhaustive batch they are the exact
expectations under μ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .ratio import MAX_LOG_RATIO
from .stats import TokenStats

Moments = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a logged name means."""

    formula: str
    unit: str
    source: str


QUANTITIES: dict[str, Quantity] = {
    "kl": Quantity(formula="mean(-D)", unit="nats/token", source="k1; verl rollout_corr/kl; arXiv 2512.01374"),
    "k3_kl": Quantity(formula="mean(exp(D) - D - 1)", unit="nats/token", source="k3; verl rollout_corr/k3_kl"),
    "chi2_token": Quantity(formula="mean(rho^2) - 1", unit="1", source="verl rollout_corr/chi2_token"),
    "chi2_seq": Quantity(
        formula="mean over sequences of exp(2 sum D), minus 1", unit="1", source="verl rollout_corr/chi2_seq"
    ),
    "rollout_is_eff_sample_size": Quantity(
        formula="mean(rho)^2 / mean(rho^2)", unit="fraction of tokens", source="verl rollout_corr"
    ),
    "training_ppl": Quantity(
        formula="mean over sequences of exp(-mean log pi_old)", unit="1", source="verl rollout_corr"
    ),
    "rollout_ppl": Quantity(formula="mean over sequences of exp(-mean log mu)", unit="1", source="verl rollout_corr"),
    "ppl_ratio": Quantity(formula="training_ppl / rollout_ppl", unit="1", source="verl rollout_corr"),
    "rollout_probs_diff_mean": Quantity(
        formula="mean |pi_old - mu|", unit="probability", source="verl training/rollout_probs_diff_mean"
    ),
    "rollout_probs_diff_std": Quantity(
        formula="std |pi_old - mu|", unit="probability", source="verl training/rollout_probs_diff_std"
    ),
    "rollout_actor_probs_pearson_corr": Quantity(
        formula="corr(pi_old, mu)", unit="1", source="verl training/rollout_actor_probs_pearson_corr"
    ),
    "token_mult_prob_error": Quantity(formula="mean exp|D|", unit="1", source="NeMo-RL; alarm above 1.05 there"),
    "ratio_tail_2": Quantity(
        formula="P(max(rho, 1/rho) > 2)",
        unit="probability",
        source="F(2) of arXiv 2510.11370; danger above 0.1 there",
    ),
    "seq_log_ratio_std": Quantity(formula="std over sequences of sum D", unit="nats", source="second moment of D"),
}


def moments(stats: TokenStats) -> Moments:
    """The sums that every quantity is made of, each `(numerator, denominator)` of shape `[...]`.

    Masked tokens enter neither, and a response without tokens enters no sequence term. Tokens weigh by their
    response's measure, or 1 in a sampled batch, so that the moments of batches of any sizes add up.
    """
    mask, weight = stats.mask, stats.counts
    some = weight * mask.any(-1)
    d = torch.where(mask, stats.logp_old - stats.logp_mu, 0.0).detach()
    total = d.sum(-1)
    rho = d.clamp(max=MAX_LOG_RATIO / 2).exp()  # its square stays finite
    p, q = stats.logp_old.detach().exp(), stats.logp_mu.exp()
    token_terms = {
        "d": d,
        "rho": rho,
        "rho_square": rho.square(),
        "abs_ratio": d.abs().clamp(max=MAX_LOG_RATIO).exp(),
        "tail_2": (d.abs() > math.log(2.0)).to(d),
        "abs_diff": (p - q).abs(),
        "square_diff": (p - q).square(),
        "p": p,
        "q": q,
        "pp": p * p,
        "qq": q * q,
        "pq": p * q,
    }
    sequence_terms = {
        "seq_d": total,
        "seq_d_square": total.square(),
        "seq_rho_square": (2 * total).clamp(max=MAX_LOG_RATIO).exp(),
        "training_ppl": (-_mean(stats.logp_old.detach(), mask)).exp(),
        "rollout_ppl": (-_mean(stats.logp_mu, mask)).exp(),
    }
    tokens = (weight * mask.sum(-1)).sum(-1)
    found: Moments = {
        name: ((weight * torch.where(mask, x, 0.0).sum(-1)).sum(-1), tokens) for name, x in token_terms.items()
    }
    found |= {name: ((some * x).sum(-1), some.sum(-1)) for name, x in sequence_terms.items()}
    return found


def finalise(reduced: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The quantities of `QUANTITIES` from means (numerators over denominators, after any reduction)."""
    m = reduced
    spread = ((m["pp"] - m["p"] ** 2) * (m["qq"] - m["q"] ** 2)).clamp(min=0).sqrt()
    return {
        "kl": -m["d"],
        "k3_kl": m["rho"] - m["d"] - 1,
        "chi2_token": m["rho_square"] - 1,
        "chi2_seq": m["seq_rho_square"] - 1,
        "rollout_is_eff_sample_size": m["rho"] ** 2 / m["rho_square"],
        "training_ppl": m["training_ppl"],
        "rollout_ppl": m["rollout_ppl"],
        "ppl_ratio": m["training_ppl"] / m["rollout_ppl"],
        "rollout_probs_diff_mean": m["abs_diff"],
        "rollout_probs_diff_std": (m["square_diff"] - m["abs_diff"] ** 2).clamp(min=0).sqrt(),
        "rollout_actor_probs_pearson_corr": (m["pq"] - m["p"] * m["q"]) / spread,
        "token_mult_prob_error": m["abs_ratio"],
        "ratio_tail_2": m["tail_2"],
        "seq_log_ratio_std": (m["seq_d_square"] - m["seq_d"] ** 2).clamp(min=0).sqrt(),
    }


def diagnose(stats: TokenStats) -> dict[str, Tensor]:
    """`finalise(moments(stats))` for a batch that lives on one rank."""
    return finalise(means(moments(stats)))


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def add(a: Moments, b: Moments) -> Moments:
    """Moments of two batches together."""
    shared = {name: (a[name][0] + b[name][0], a[name][1] + b[name][1]) for name in a.keys() & b.keys()}
    return a | b | shared


def means(sums: Moments) -> dict[str, Tensor]:
    """Numerators over denominators."""
    return {name: above / below for name, (above, below) in sums.items()}
