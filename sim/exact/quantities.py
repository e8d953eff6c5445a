"""What the numbers of a measurement mean. E is over prompts and y ~ μ_old, ρ = π/μ_old under the recipe's own target.

u is the recipe's exact expected update, g the exact ∇J_seq of its own target.
"""

from __future__ import annotations

from firstorder.core.quantities import Quantity

_PAPER, _OURS, _REWARD = "arXiv 2512.01374", "firstorder", "reward"
_SQUARE = "(reward per unit of weight)²"

VALUES: dict[str, Quantity] = {
    "j_seq": Quantity(formula="J of the recipe's own target", unit=_REWARD, source=f"{_PAPER} eq. (1)"),
    "j_seq_natural": Quantity(formula="J of the natural target", unit=_REWARD, source=f"{_PAPER} eq. (1)"),
    "j_mu": Quantity(formula="J of μ_old, the policy that was sampled", unit=_REWARD, source=f"{_PAPER} eq. (1)"),
    "j_mu_theta": Quantity(
        formula="J of μ_θ, the policy that would be deployed; equals j_mu at staleness 0", unit=_REWARD, source=_OURS
    ),
    "j_token": Quantity(
        formula="E[Σ_t ρ_t R], own target", unit="reward x tokens", source=f"{_PAPER} eq. (3), as printed"
    ),
    "approximation_error": Quantity(
        formula="J(π) - J(μ_old) - E[R Σ_t (ρ_t - 1)], signed, own target",
        unit=_REWARD,
        source=f"what eq. (3) of {_PAPER} leaves out",
    ),
    "expansion": Quantity(
        formula="J(π) = j_mu + Σ_k e_k, e_k = E[R Σ_{t_1 < ... < t_k} Π_i (ρ_{t_i} - 1)], own target; a list of e_1 to "
        "e_4, so that approximation_error is e_2 + e_3 + ...",
        unit=_REWARD,
        source=f"{_PAPER} eq. (1) around eq. (3)",
    ),
    "value_error": Quantity(formula="|approximation_error|", unit=_REWARD, source=_OURS),
    "replay_bias": Quantity(
        formula="J(π natural) - J(π), signed; 0 without replay", unit=_REWARD, source=f"{_PAPER} Table 1"
    ),
    "value_error_natural": Quantity(formula="|approximation_error + replay_bias|", unit=_REWARD, source=_OURS),
}

GRADIENTS: dict[str, Quantity] = {
    "gradient_error": Quantity(formula="min_c ‖c u - g‖ / ‖g‖", unit="1", source=_OURS),
    "gradient_error_raw": Quantity(formula="‖u - g‖ / ‖g‖", unit="1", source=_OURS),
    "update_scale": Quantity(formula="the c of gradient_error", unit="1", source=_OURS),
    "cosine": Quantity(formula="⟨u, g⟩ / (‖u‖ ‖g‖)", unit="1", source=_OURS),
    **{
        f"{name}_natural": Quantity(formula=f"{name} with g of the natural target", unit="1", source=_OURS)
        for name in ("gradient_error", "update_scale", "cosine")
    },
    "gradient_norm": Quantity(formula="‖g‖", unit="reward per unit of weight", source=_OURS),
    "variance": Quantity(
        formula="V = E‖û - u‖², trace of the covariance of one minibatch's update û, of schedule.prompts / "
        "schedule.minibatches groups of schedule.group_size responses; null where not formed, and all below with it",
        unit=_SQUARE,
        source=_OURS,
    ),
    "mse": Quantity(formula="E‖c û - g‖² = mse_bias + mse_variance, c = update_scale", unit=_SQUARE, source=_OURS),
    "mse_bias": Quantity(formula="‖c u - g‖² = (gradient_error · ‖g‖)²", unit=_SQUARE, source=_OURS),
    "mse_variance": Quantity(formula="c² V", unit=_SQUARE, source=_OURS),
    "mse_raw": Quantity(formula="E‖û - g‖² = ‖u - g‖² + V, unscaled", unit=_SQUARE, source=_OURS),
    **{
        f"{name}_natural": Quantity(formula=f"{name} with g of the natural target", unit=_SQUARE, source=_OURS)
        for name in ("mse", "mse_bias", "mse_variance", "mse_raw")
    },
    "progress": Quantity(
        formula="⟨u, g⟩² / (‖g‖² (‖u‖² + V)), 0 where ⟨u, g⟩ < 0, natural target: what a step along û of the best "
        "length gains to first order under a quadratic penalty, as a share of what g gains",
        unit="1",
        source=_OURS,
    ),
    "progress_ceiling": Quantity(
        formula="cosine_natural², the progress of ever more responses; 0 where it is negative", unit="1", source=_OURS
    ),
    "responses_for_equal_progress": Quantity(
        formula="responses with which the recipe's progress is that of schedule's minibatch drawn from the natural "
        "target itself, with a leave-one-out baseline; infinite (null in JSON) where progress_ceiling is no more",
        unit="responses",
        source=_OURS,
    ),
}

ENGINES: dict[str, Quantity] = {
    "kl_mu_old": Quantity(
        formula="KL(μ_old ‖ π_old live) of the next token, per response token", unit="nats/token", source=_PAPER
    ),
    "kl_mu_old_replayed": Quantity(
        formula="KL(μ_old ‖ π_old) under the recipe's replay", unit="nats/token", source=_OURS
    ),
    "log_chi2_seq": Quantity(
        formula="log(1 + χ²(π_old ‖ μ_old)) = log E[Π_t ρ_t²] of whole responses, ρ = π_old/μ_old under the recipe's "
        "replay, so that their effective sample size is exp(-log_chi2_seq) of their number",
        unit="nats",
        source=f"the weights of {_PAPER} eq. (1)",
    ),
    "entropy": Quantity(
        formula="entropy of the own target's next token on μ_old's contexts", unit="nats/token", source=_PAPER
    ),
    "flip_rate": Quantity(
        formula="share of (response token, layer) whose expert set differs between π_old live and μ_old",
        unit="probability",
        source="arXiv 2510.11370",
    ),
    "flip_rate_per_layer": Quantity(formula="flip_rate of each layer, a list", unit="probability", source=_OURS),
    "tokens_flipped": Quantity(
        formula="share of response tokens with a flip in at least one layer",
        unit="probability",
        source="arXiv 2510.11370",
    ),
    "jaccard": Quantity(
        formula="|A ∩ B| / |A ∪ B| of the two expert sets, mean over tokens and layers", unit="1", source=_OURS
    ),
    "gate_margin": Quantity(
        formula="k-th minus (k+1)-th largest selection score of π_old, mean over tokens and layers; in the router's "
        "own score (probability, logit or biased sigmoid)",
        unit="score",
        source=_OURS,
    ),
    "mean_length": Quantity(formula="E|y|", unit="tokens", source=_OURS),
}

SIZES: dict[str, Quantity] = {
    "nodes": Quantity(
        formula="contexts: of a tree prompts · Σ_{t<horizon} W^t, with W tokens that a response goes on after; of a "
        "graph the rows of its table",
        unit="contexts",
        source=_OURS,
    ),
    "responses": Quantity(
        formula="responses that are looked at one by one: all that there are, or those drawn",
        unit="responses",
        source=_OURS,
    ),
    "parameters": Quantity(formula="weights that the gradients are taken by", unit="weights", source=_OURS),
}

MASK: dict[str, Quantity] = {
    "tokens_truncated": Quantity(
        formula="response tokens that μ_old samples from fewer tokens than there are",
        unit="share of response tokens",
        source=_OURS,
    ),
    "kept": Quantity(
        formula="tokens that μ_old samples from, mean over these response tokens; null where there are none",
        unit="tokens",
        source=_OURS,
    ),
    "mass_outside": Quantity(
        formula="mass of π_old, over all tokens with its own routes, on tokens that μ_old leaves out, per response "
        "token; 1 - E[π_old/μ_old] where the mask is ignored",
        unit="probability",
        source=_OURS,
    ),
    "j_whole": Quantity(formula="J of the natural target over all tokens", unit=_REWARD, source=_OURS),
    "gradient_error_whole": Quantity(
        formula="gradient_error with g of the natural target over all tokens; null where that is 0",
        unit="1",
        source=_OURS,
    ),
}
"""What `mask` of a result holds."""

QUANTITIES = VALUES | GRADIENTS | ENGINES | SIZES
"""Every number of a result by its name, but for `seconds` and the tables that have keys of their own."""
