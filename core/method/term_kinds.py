"""The terms of a loss beside its weight, a row each, and the estimators of the KL to a reference.

The mathematics of a row is in `core.method.terms`. Nothing here needs torch, so that a recipe is read without it.
"""

from __future__ import annotations

from .parts import Part, Table

ESTIMATORS: Table = {
    "k1": Part(
        formula="d = log π_θ/π_ref; gradient 1",
        source="verl kl_loss_type = k1, slime and OpenRLHF k1; Schulman 2020",
    ),
    "k2": Part(formula="d²/2; gradient d", source="verl kl_loss_type = k2 or mse, the gradient of its k1+ and k3+"),
    "k3": Part(
        formula="e^-d - 1 + d; gradient 1 - e^-d",
        source="GRPO, arXiv 2402.03300 eq. (4); verl low_var_kl, TRL beta",
    ),
    "unbiased": Part(
        formula="π_θ/μ · k3; gradient π_θ/μ · d",
        source="DeepSeek-V3.2, arXiv 2512.02556; TRL use_bias_correction_kl with π_θ/π_old",
    ),
    "full": Part(formula="Σ_v π_θ(v) log π_θ(v)/π_ref(v)", source="named and not implemented in verl kl_loss_type"),
}

TERMS: dict[str, Part] = {
    "reference_kl": Part(
        formula="+ β KL(π_θ ‖ π_ref), by `reference_estimator`",
        source="arXiv 2402.03300 eq. (3); verl kl_loss_coef, TRL beta",
        needs="logp_ref",
    ),
    "entropy": Part(formula="- e H(π_θ)", source="arXiv 1602.01783 sec. 4; verl entropy_coeff", needs="entropy"),
    "squared_log_ratio": Part(formula="+ c (log r)², r of `squared_of`", source="prime-rl kl_tau"),
}
"""By the key of `[terms]` that holds the coefficient."""
