"""Named quantities of a batch, with formula, unit and source.

Each is built from moments, (numerator, denominator) pairs that any backend can add over ranks before dividing;
`finalise` turns the reduced means into the values people log. D = log π_old - log μ on response tokens,
ρ = exp D, δ = ρ - 1, W = ∏ ρ. Means are over tokens unless the name says sequence; on an exhaustive batch they are
the exact expectations under μ.
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
    """What a logged name means.

    Args:
        formula: how it is computed, or a sentence where there is no formula.
        unit: of its values.
        source: who logs it under which name, or where it is defined.
        alarm: the level above which the source, and nobody else, speaks of danger.
    """

    formula: str
    unit: str
    source: str
    alarm: float | None = None


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
    "seq_eff_sample_size": Quantity(
        formula="mean(W)^2 / mean(W^2) over sequences, W = exp(sum D)",
        unit="fraction of responses",
        source="Kish; what is left of a batch under sequence-level importance sampling",
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
    "token_mult_prob_error": Quantity(formula="mean exp|D|", unit="1", source="NeMo-RL", alarm=1.05),
    "ratio_tail_2": Quantity(
        formula="P(max(rho, 1/rho) > 2)", unit="probability", source="F(2) of arXiv 2510.11370", alarm=0.1
    ),
    "ratio_tail_5": Quantity(
        formula="P(max(rho, 1/rho) > 5)",
        unit="probability",
        source="F(5) of arXiv 2510.11370; 5 is where arXiv 2512.01374 truncates",
    ),
    "seq_log_ratio_std": Quantity(formula="std over sequences of sum D", unit="nats", source="second moment of D"),
    "response_length": Quantity(
        formula="mean over responses of their response tokens", unit="tokens", source="verl response_length/mean"
    ),
    "reward_pi": Quantity(
        formula="mean(W R) / mean(W) over responses, W = exp(sum D)",
        unit="reward",
        source="self-normalised importance sampling estimate of J(pi_old), as good as seq_eff_sample_size is large",
    ),
    "second_order_remainder": Quantity(
        formula="mean over responses of R ((sum delta)^2 - sum delta^2) / 2, delta = rho - 1",
        unit="reward",
        source="leading term of J(pi_old) - J(mu) - E_mu[R sum delta], what eq. (3) of arXiv 2512.01374 leaves out",
    ),
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
    w = total.clamp(max=MAX_LOG_RATIO / 2).exp()
    rho = d.clamp(max=MAX_LOG_RATIO / 2).exp()  # its square stays finite
    p, q = stats.logp_old.detach().exp(), stats.logp_mu.exp()
    token_terms = {
        "d": d,
        "rho": rho,
        "rho_square": rho.square(),
        "abs_ratio": d.abs().clamp(max=MAX_LOG_RATIO).exp(),
        "tail_2": (d.abs() > math.log(2.0)).to(d),
        "tail_5": (d.abs() > math.log(5.0)).to(d),
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
        "seq_rho": w,
        "seq_rho_square": w.square(),
        "training_ppl": (-_mean(stats.logp_old.detach(), mask)).exp(),
        "rollout_ppl": (-_mean(stats.logp_mu, mask)).exp(),
    }
    tokens = (weight * mask.sum(-1)).sum(-1)
    found: Moments = {
        name: ((weight * torch.where(mask, x, 0.0).sum(-1)).sum(-1), tokens) for name, x in token_terms.items()
    }
    found |= {name: ((some * x).sum(-1), some.sum(-1)) for name, x in sequence_terms.items()}
    found["response_length"] = tokens, some.sum(-1)
    if stats.rewards is not None:
        found["seq_rho_reward"] = (some * w * stats.rewards).sum(-1), (some * w).sum(-1)
        found["second_order_remainder"] = remainder_moment(stats, stats.logp_old)
    return found


def remainder_moment(stats: TokenStats, logp_pi: Tensor) -> tuple[Tensor, Tensor]:
    """The second-order term of J(π) - J(μ) - E_μ[R Σ δ_t], as (numerator, denominator) `[...]`.

        E_μ[R Σ_{i<j} δ_i δ_j] = E_μ[R ((Σ δ_t)² - Σ δ_t²) / 2],   δ_t = π(y_t|c_t) / μ(y_t|c_t) - 1

    The terms of third and higher order are what is left of the value error.

    Args:
        stats: responses from μ with their rewards.
        logp_pi: `[..., B, T]` nats, the policy that is optimised.

    Reference:
        arXiv 2512.01374, from eq. (1) to eq. (3): ∏ (1 + δ_t) ≈ 1 + Σ δ_t.
    """
    assert stats.rewards is not None
    d = torch.where(stats.mask, logp_pi - stats.logp_mu, 0.0).detach()
    delta = d.clamp(max=MAX_LOG_RATIO / 2).expm1()
    pairs = (delta.sum(-1).square() - delta.square().sum(-1)) / 2
    some = stats.counts * stats.mask.any(-1)
    return (some * stats.rewards * pairs).sum(-1), some.sum(-1)


def finalise(reduced: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The quantities of `QUANTITIES` from means (numerators over denominators, after any reduction).

    Those that read rewards are left out where the moments were made without.
    """
    m = reduced
    spread = ((m["pp"] - m["p"] ** 2) * (m["qq"] - m["q"] ** 2)).clamp(min=0).sqrt()
    found = {
        "kl": -m["d"],
        "k3_kl": m["rho"] - m["d"] - 1,
        "chi2_token": m["rho_square"] - 1,
        "chi2_seq": m["seq_rho_square"] - 1,
        "rollout_is_eff_sample_size": m["rho"] ** 2 / m["rho_square"],
        "seq_eff_sample_size": m["seq_rho"] ** 2 / m["seq_rho_square"],
        "training_ppl": m["training_ppl"],
        "rollout_ppl": m["rollout_ppl"],
        "ppl_ratio": m["training_ppl"] / m["rollout_ppl"],
        "rollout_probs_diff_mean": m["abs_diff"],
        "rollout_probs_diff_std": (m["square_diff"] - m["abs_diff"] ** 2).clamp(min=0).sqrt(),
        "rollout_actor_probs_pearson_corr": (m["pq"] - m["p"] * m["q"]) / spread,
        "token_mult_prob_error": m["abs_ratio"],
        "ratio_tail_2": m["tail_2"],
        "ratio_tail_5": m["tail_5"],
        "seq_log_ratio_std": (m["seq_d_square"] - m["seq_d"] ** 2).clamp(min=0).sqrt(),
        "response_length": m["response_length"],
    }
    if "seq_rho_reward" in m:
        found |= {"reward_pi": m["seq_rho_reward"], "second_order_remainder": m["second_order_remainder"]}
    return found


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
