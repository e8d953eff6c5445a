"""Names that mean one thing here and another elsewhere, or one thing under many names.

Every statement about a framework is one that a row of `backends.peers.rows` tries, named beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FRAMEWORKS = ("trl", "verl", "torchrl")


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a framework calls it and makes of it; `row` of that framework shows it."""

    says: str
    row: str


@dataclass(frozen=True, kw_only=True)
class Term:
    """One name.

    Args:
        name: what people call it.
        here: what it is in this package, with the key that sets it.
        elsewhere: by framework; one that has no such thing is left out.
    """

    name: str
    here: str
    elsewhere: Mapping[str, Meaning] = field(default_factory=dict)


def _m(says: str, row: str) -> Meaning:
    return Meaning(says=says, row=row)


TERMS: tuple[Term, ...] = (
    Term(
        name="sequence-level ratio, product",
        here='`span = "sequence"`, Π ρ, held at exp(20)',
        elsewhere={
            "trl": _m(
                "`vllm_importance_sampling_mode` `sequence_truncate`, `sequence_mask`", "luspo, sequence_truncate"
            ),
            "verl": _m("`rollout_is = sequence`, log held within ±20", "vanilla, sequence weights"),
        },
    ),
    Term(
        name="sequence-level ratio, geometric mean",
        here='`span = "geometric"`, (Π ρ)^(1/|y|)',
        elsewhere={
            "trl": _m(
                '`importance_sampling_level = "sequence"`, whose gradient all tokens share', "grpo, sequence level"
            ),
            "verl": _m("`loss_mode = gspo`, each token with its own advantage", "gspo"),
        },
    ),
    Term(
        name="token mean",
        here='`aggregation.kind = "token_mean"`, over all response tokens of the batch',
        elsewhere={
            "trl": _m("`bnpo` over those it is given, `dapo` over those of the whole generation", "bnpo"),
            "verl": _m("`token-mean`", "vanilla"),
            "torchrl": _m('`aggregation = "token_mean"`', "GRPOLoss, token_mean"),
        },
    ),
    Term(
        name="mean over responses of token means",
        here='`aggregation.kind = "length"`; a response without tokens counts',
        elsewhere={
            "trl": _m('`loss_type = "grpo"`; it counts', "grpo"),
            "verl": _m(
                "`seq-mean-token-mean`; it counts where `global_batch_size` is given, else not",
                "vanilla, mean of means, size not given",
            ),
            "torchrl": _m('`aggregation = "prompt_mean"`; it counts', "GRPOLoss, prompt_mean"),
        },
    ),
    Term(
        name="upper bound of CISPO",
        here="`clip.high`, above 1: r ≤ 1 + high",
        elsewhere={
            "trl": _m("`epsilon_high`, the bound itself: r ≤ epsilon_high", "cispo"),
            "verl": _m("`clip_ratio_high`, above 1", "cispo"),
            "torchrl": _m("`clip_epsilon`, above 1; a clipped token has no gradient", "CISPOLoss"),
        },
    ),
    Term(
        name="dual clip",
        here="not in `ppo`",
        elsewhere={"verl": _m("`clip_ratio_c`, 3 unless set", "vanilla, defaults")},
    ),
    Term(
        name="threshold of DPPO",
        here="`clip.high`, 0.15; the ratio is not truncated",
        elsewhere={
            "verl": _m("`clip_ratio`; the ratio is truncated at `clip_ratio_c`, 3 unless set", "dppo_tv, defaults")
        },
    ),
    Term(
        name="token mean where responses are rejected",
        here="divides by all response tokens: what is left keeps its weight",
        elsewhere={"verl": _m("divides by the tokens that are kept", "vanilla, rejected responses")},
    ),
    Term(
        name="bounds of a rejected response",
        here="`rejection.low`, `high` of π_old/μ in kind `ratio`, of log μ/π_old in nats in `k1`",
        elsewhere={
            "trl": _m("`vllm_importance_sampling_clip_min`, `max` of π_old/μ", "luspo, sequence_mask"),
            "verl": _m(
                "`rollout_rs_threshold` of `*_k1` bounds μ/π_old, the reciprocal", "reinforce, seq_sum_k1, our bounds"
            ),
        },
    ),
    Term(
        name="spread of a group",
        here="sample standard deviation + 1e-6",
        elsewhere={
            "trl": _m("+ 1e-4", "scale_rewards group"),
            "verl": _m("+ 1e-6", "grpo advantage"),
            "torchrl": _m("held above 1e-6", "MCAdvantage"),
        },
    ),
    Term(
        name="advantage of a response alone in its group",
        here="0",
        elsewhere={
            "trl": _m("0", "scale_rewards none"),
            "verl": _m("its reward", "grpo advantage, no std"),
            "torchrl": _m("NaN", "MCAdvantage"),
        },
    ),
    Term(
        name="upper bound where A < 0",
        here='`clip.kind = "dual"`, `clip.cap`; none in `ppo`',
        elsewhere={
            "trl": _m("`delta`, none unless set", "bnpo, delta"),
            "verl": _m("`clip_ratio_c`, 3 unless set", "vanilla, dual clip"),
        },
    ),
    Term(
        name="advantages over the batch's spread",
        here='`scale = "whiten"`, over response tokens; `scale = "batch_std"`, of rewards, a response each',
        elsewhere={
            "trl": _m('`scale_rewards = "batch"`, of rewards, and 1e-4', "scale_rewards batch"),
            "verl": _m(
                "`reinforce_plus_plus_baseline`, over response tokens", "reinforce_plus_plus_baseline advantage"
            ),
        },
    ),
    Term(
        name="KL to a reference in the loss",
        here="`terms.reference_estimator`, k3 unless set; log-ratios are held within ±20",
        elsewhere={
            "trl": _m("`beta`, k3; log-ratios are not held", "grpo, beta"),
            "verl": _m(
                "`kl_loss_type`: `kl` is k1, `mse` k2, `low_var_kl` k3, whose gradient ends where its value reaches 10",
                "kl_loss, low_var_kl",
            ),
        },
    ),
    Term(
        name="that KL, unbiased off policy",
        here='`reference_estimator = "unbiased"`, π_θ/μ times k3',
        elsewhere={
            "trl": _m("`use_bias_correction_kl`, k3 times the ratio of the loss", "luspo, beta, use_bias_correction_kl")
        },
    ),
    Term(
        name="k1+, k3+",
        here="none; `k2` has their gradient",
        elsewhere={"verl": _m("`kl_loss_type`, the gradient of k2", "kl_loss, k3+")},
    ),
    Term(
        name="entropy bonus",
        here="`terms.entropy`, divided as weights are",
        elsewhere={
            "trl": _m("`entropy_coef`, a mean over response tokens whatever the loss type", "grpo, entropy_coef"),
            "verl": _m("`entropy_coeff`, divided as the loss is", "entropy_coeff, mean of means"),
        },
    ),
    Term(
        name="GAE",
        here='`baseline = "value"`, as it is unless `scale = "whiten"`; tokens off the mask are stepped over',
        elsewhere={
            "verl": _m("whitened over the batch; tokens off the mask are stepped over", "whitened gae, lambda 0.95"),
            "torchrl": _m("as it is", "gae, lambda 0.95"),
        },
    ),
    Term(
        name="clip fraction",
        here="`clip_upper`, `clip_lower`: the clip changed the ratio, by the sign of A",
        elsewhere={
            "trl": _m("`clip_ratio/high_mean`, `clip_ratio/low_mean`, a ratio of 0 included", "clip_ratio/low_mean"),
            "verl": _m("`actor/pg_clipfrac`, both signs, a ratio of 0 included", "pg_clipfrac"),
        },
    ),
    Term(
        name="share that is truncated",
        here="`truncated`: of tokens, of responses where the span is a whole response",
        elsewhere={
            "verl": _m("`rollout_is_ratio_fraction_high`, the same", "rollout_is_ratio_fraction_high, sequence")
        },
    ),
    Term(
        name="effective sample size of tokens",
        here="`rollout_is_eff_sample_size` of min(ρ, 2); `token_eff_sample_size` of ρ",
        elsewhere={
            "verl": _m("`rollout_is_eff_sample_size`, of weights after truncation", "rollout_is_eff_sample_size"),
            "torchrl": _m("`ESS`, of the loss's own ratio, not truncated", "ESS"),
        },
    ),
    Term(
        name="chi2_seq",
        here="mean over responses of exp(2 Σ D), less 1, Σ D held within ±20",
        elsewhere={"verl": _m("the same; a response without tokens counts as 1", "chi2_seq")},
    ),
    Term(
        name="ppl_ratio",
        here="mean over responses of exp(-mean D)",
        elsewhere={"verl": _m("the same; a response without tokens counts as 1", "ppl_ratio")},
    ),
    Term(
        name="rollout_probs_diff_std",
        here="sample standard deviation, 0 of one token",
        elsewhere={"verl": _m("sample standard deviation, NaN of one token", "rollout_probs_diff_std")},
    ),
    Term(
        name="a sampled token with log-prob -inf under π_θ",
        here="no weight: it has no score",
        elsewhere={
            "trl": _m("no weight where a ratio multiplies it", "grpo"),
            "verl": _m("none with a ratio; `reinforce` and a clamped ratio leave it one", "reinforce"),
            "torchrl": _m("no weight", "GRPOLoss, token_mean"),
        },
    ),
)
