"""Named quantities of a batch, with formula, unit and source.

Each is built from moments, (numerator, denominator) pairs that any backend can add over ranks before dividing;
`finalise` turns the sums into the values people log. D = log π_old - log μ on response tokens, ρ = exp D, δ = ρ - 1,
W = ∏ ρ. Means are over tokens unless the name says sequence; on an exhaustive batch they are the exact expectations
under μ.

Moments are float64 whatever the log-probs are, and what vanishes as the engines agree is summed as itself:
expm1(D) - D, ρ² - 1, 1 - π. A difference of sums of large terms would be their rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from firstorder.core.method.stats import TokenStats
from firstorder.core.quantities import Moments, Quantity, means

BOUND = 20.0  # nats of a log-ratio before it is squared, as verl's SAFETY_BOUND
WIDE = 300.0  # nats: a product is held here, so that its square is finite in float64
TRUNCATED = 2.0  # verl's default rollout_is_threshold


QUANTITIES: dict[str, Quantity] = {
    "kl": Quantity(formula="mean(-D)", unit="nats/token", source="k1; verl rollout_corr/kl; arXiv 2512.01374"),
    "k3_kl": Quantity(formula="mean(exp(D) - D - 1)", unit="nats/token", source="k3; verl rollout_corr/k3_kl"),
    "chi2_token": Quantity(
        formula="mean(rho^2) - 1, D held within 20", unit="1", source="verl rollout_corr/chi2_token"
    ),
    "chi2_seq": Quantity(
        formula="mean over sequences of exp(2 sum D), minus 1, sum D held within 20",
        unit="1",
        source="verl rollout_corr/chi2_seq",
    ),
    "token_eff_sample_size": Quantity(
        formula="mean(rho)^2 / mean(rho^2)", unit="fraction of tokens", source="Kish; no weight is truncated"
    ),
    "rollout_is_eff_sample_size": Quantity(
        formula="mean(w)^2 / mean(w^2), w = min(rho, 2)",
        unit="fraction of tokens",
        source="verl rollout_corr/rollout_is_eff_sample_size at rollout_is = token and its default threshold",
    ),
    "seq_eff_sample_size": Quantity(
        formula="mean(W)^2 / mean(W^2) over sequences, W = exp(sum D); 0 where every W^2 is below float64",
        unit="fraction of responses",
        source="Kish; what is left of a batch under sequence-level importance sampling",
    ),
    "training_ppl": Quantity(
        formula="mean over sequences of exp(-mean log pi_old)", unit="1", source="verl rollout_corr/training_ppl"
    ),
    "rollout_ppl": Quantity(
        formula="mean over sequences of exp(-mean log mu)", unit="1", source="verl rollout_corr/rollout_ppl"
    ),
    "ppl_ratio": Quantity(
        formula="mean over sequences of exp(-mean D)", unit="1", source="verl rollout_corr/ppl_ratio"
    ),
    "rollout_probs_diff_mean": Quantity(
        formula="mean |pi_old - mu|", unit="probability", source="verl training/rollout_probs_diff_mean"
    ),
    "rollout_probs_diff_std": Quantity(
        formula="std |pi_old - mu|, over n - 1 where tokens are sampled",
        unit="probability",
        source="verl training/rollout_probs_diff_std",
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
        formula="mean of the response tokens of responses that have any",
        unit="tokens",
        source="verl response_length_non_aborted/mean",
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
    """The sums that every quantity is made of, each `(numerator, denominator)` of shape `[...]`, float64.

    Masked tokens enter neither, and a response without tokens enters no sequence term. Tokens weigh by their
    response's measure, or 1 in a sampled batch, so that the moments of batches of any sizes add up.
    """
    mask, weight = stats.mask, stats.counts.double()
    old, mu = (torch.where(mask, x.detach().double(), 0.0) for x in (stats.logp_old, stats.logp_mu))
    d, some = old - mu, weight * mask.any(-1)
    per_response = (weight * mask.sum(-1)).sum(-1)
    sums: Moments = {
        # one at a time: a batch of long responses holds each for a while only
        name: ((weight * torch.where(mask, term(d, old, mu), 0.0).sum(-1)).sum(-1), per_response)
        for name, term in _TOKEN_TERMS.items()
    }
    total, length = d.sum(-1), stats.lengths
    w = total.clamp(max=WIDE).exp()
    sequence_terms = {
        "seq_d": total,
        "seq_d_square": total.square(),
        "seq_rho": w,
        "seq_rho_square": w.square(),
        "seq_chi2": (2 * total.clamp(-BOUND, BOUND)).expm1(),
        "training_ppl": (-old.sum(-1) / length).exp(),
        "rollout_ppl": (-mu.sum(-1) / length).exp(),
        "ppl_ratio": (-total / length).exp(),
    }
    sums |= {name: ((some * x).sum(-1), some.sum(-1)) for name, x in sequence_terms.items()}
    sums["response_length"] = per_response, some.sum(-1)
    sums["tokens"] = _count(stats), torch.ones_like(per_response)
    if stats.rewards is not None:
        held = total.clamp(-WIDE, WIDE).exp()  # where every product vanishes, a plain mean
        sums["seq_rho_reward"] = (some * held * stats.rewards).sum(-1), (some * held).sum(-1)
        sums["second_order_remainder"] = remainder_moment(stats, stats.logp_old)
    return sums


def _count(stats: TokenStats) -> Tensor:
    """How many tokens were sampled, `[...]`; infinitely many where the batch is an expectation."""
    tokens = stats.mask.sum((-2, -1)).expand(stats.logp_old.shape[:-2]).double()
    return tokens if stats.measure is None else torch.full_like(tokens, torch.inf)


_Term = Callable[[Tensor, Tensor, Tensor], Tensor]
_TOKEN_TERMS: dict[str, _Term] = {
    # of D, log π_old and log μ; π is kept as 1 - π, for most tokens are nearly certain
    "d": lambda d, old, mu: d,
    "k3": lambda d, old, mu: (d.clamp(max=WIDE).expm1() - d).clamp(min=0.0),
    "chi2": lambda d, old, mu: (2 * d.clamp(-BOUND, BOUND)).expm1(),
    "rho": lambda d, old, mu: d.clamp(max=WIDE).exp(),
    "rho_square": lambda d, old, mu: (2 * d.clamp(max=WIDE)).exp(),
    "cut": lambda d, old, mu: d.exp().clamp(max=TRUNCATED),
    "cut_square": lambda d, old, mu: d.exp().clamp(max=TRUNCATED).square(),
    "abs_ratio": lambda d, old, mu: d.abs().clamp(max=WIDE).exp(),
    "tail_2": lambda d, old, mu: (d.abs() > math.log(2.0)).to(d),
    "tail_5": lambda d, old, mu: (d.abs() > math.log(5.0)).to(d),
    "abs_diff": lambda d, old, mu: _gap(d, mu),
    "square_diff": lambda d, old, mu: _gap(d, mu).square(),
    "p": lambda d, old, mu: old.expm1(),
    "q": lambda d, old, mu: mu.expm1(),
    "pp": lambda d, old, mu: old.expm1().square(),
    "qq": lambda d, old, mu: mu.expm1().square(),
    "pq": lambda d, old, mu: old.expm1() * mu.expm1(),
}


def _gap(d: Tensor, mu: Tensor) -> Tensor:
    """|π_old - μ| = max(π_old, μ) (1 - exp(-|D|)), which keeps its digits where the two nearly agree."""
    return -(mu + d.clamp(min=0.0)).exp() * (-d.abs()).expm1()


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
    d = torch.where(stats.mask, logp_pi.detach().double() - stats.logp_mu.double(), 0.0)
    delta = d.clamp(max=WIDE).expm1()
    pairs = (delta.sum(-1).square() - delta.square().sum(-1)) / 2
    some = stats.counts * stats.mask.any(-1)
    return (some * stats.rewards * pairs).sum(-1), some.sum(-1)


def finalise(sums: Moments) -> dict[str, Tensor]:
    """The quantities of `QUANTITIES` from moments, after any reduction.

    Those that read rewards are left out where the moments were made without.
    """
    m = means(sums)
    spread = ((m["pp"] - m["p"] ** 2) * (m["qq"] - m["q"] ** 2)).clamp(min=0).sqrt()
    quantities = {
        "kl": -m["d"],
        "k3_kl": m["k3"],
        "chi2_token": m["chi2"],
        "chi2_seq": m["seq_chi2"],
        "token_eff_sample_size": m["rho"] ** 2 / m["rho_square"],
        "rollout_is_eff_sample_size": m["cut"] ** 2 / m["cut_square"],
        "seq_eff_sample_size": torch.where(m["seq_rho_square"] > 0, m["seq_rho"] ** 2 / m["seq_rho_square"], 0.0),
        "training_ppl": m["training_ppl"],
        "rollout_ppl": m["rollout_ppl"],
        "ppl_ratio": m["ppl_ratio"],
        "rollout_probs_diff_mean": m["abs_diff"],
        "rollout_probs_diff_std": _sample_std(m["abs_diff"], m["square_diff"], sums["tokens"][0]),
        "rollout_actor_probs_pearson_corr": ((m["pq"] - m["p"] * m["q"]) / spread).clamp(-1, 1),
        "token_mult_prob_error": m["abs_ratio"],
        "ratio_tail_2": m["tail_2"],
        "ratio_tail_5": m["tail_5"],
        "seq_log_ratio_std": (m["seq_d_square"] - m["seq_d"] ** 2).clamp(min=0).sqrt(),
        "response_length": m["response_length"],
    }
    if "seq_rho_reward" in m:
        quantities |= {"reward_pi": m["seq_rho_reward"], "second_order_remainder": m["second_order_remainder"]}
    return quantities


def _sample_std(mean: Tensor, square: Tensor, count: Tensor) -> Tensor:
    """√(n / (n - 1) · (E[x²] - E[x]²)), 0 for a single one."""
    variance = (square - mean.square()).clamp(min=0) / (1 - 1 / count)
    return torch.where(count > 1, variance, 0.0).sqrt()


def diagnose(stats: TokenStats) -> dict[str, Tensor]:
    """`finalise(moments(stats))` for a batch that lives on one rank."""
    return finalise(moments(stats))
