"""What is compared with which framework, and where it is known to differ and why.

A row is one function of a peer with one setting, held against one output of the golden vectors on every case. What it
calls stands in the module of the peer, under the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from firstorder.core.conformance.methods import REJECTED

PINS: dict[str, str] = {"trl": "1.16.0", "verl": "0.9.1", "torchrl": "0.14.1"}
"""The releases that the rows were written for."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Args:
        peer: the framework.
        name: of the row.
        ours: the output of the vectors, `SECTION/NAME/OUTPUT`; of receipts, `clip_upper+clip_lower` is their sum.
        calls: the function and the settings that matter.
        differs: by case or group, why it is known to differ there.
    """

    peer: str
    name: str
    ours: str
    calls: str
    differs: Mapping[str, str] = field(default_factory=dict)


def _on(why: str, *cases: str) -> dict[str, str]:
    return dict.fromkeys(cases, why)


EMPTY = _on(
    "agg_loss leaves a response without tokens out of its mean over responses, unless it is given global_batch_size",
    "empty_response",
)
PPL = _on("a response without tokens enters the mean over responses as 1", "empty_response")
NO_SCORE = _on("a token with log-prob -inf keeps its weight; here it has no score and none", "impossible_token")
DUAL = _on("clip_ratio_c is 3 by default: where A < 0 a ratio above 3 is dropped (dual clip)", "extremes")
CAP = _on("the ratio is truncated at clip_ratio_c, 3 by default", "extremes")
MEAN_A = _on("the advantages of a response's tokens are averaged", "token_advantages")
RECIPROCAL = "the bounds of seq_*_k1 hold for mu / pi, the reciprocal of the ratio"
KEPT = _on("a token mean divides by the tokens that are kept; here by all", "rationals", "extremes")
CLIPPED_ZERO = _on("a clip that drops a ratio of 0 counts; here it has changed nothing", "impossible_token")
ONE_STD = _on("the sample standard deviation of one token is NaN, here 0", "one_token")
ALONE = _on("a response without companions has the baseline 0; here its advantage is 0", "single")
MORE_TOKENS = _on("a mean divides by 1e-8 more than there are tokens", "agreeing", "nearly_agreeing")
VARIED = ("pair", "binary", "graded", "nearly_agreeing")
TRL_STD = _on("1e-4 is added to the standard deviation; here 1e-6", *VARIED)
RL_STD = _on("the standard deviation is held above 1e-6; here 1e-6 is added to it", *VARIED) | _on(
    "the standard deviation of one response is NaN, and so is its advantage; here it is 0", "single"
)
FLOW = _on(
    "the clipped ratio carries the gradient, so that a clipped token has none; here it weighs the score",
    *("rationals", "masks", "empty_response", "extremes", "long", "token_advantages", "one_token"),
)
SPREAD = _on(
    "the gradient of a response's ratio reaches its tokens alike; here each counts by its own advantage",
    "token_advantages",
)
NOT_HELD = _on("log-ratios are not held; here within 20", "extremes") | _on(
    "a token with log-prob -inf has no finite gradient; here none", "impossible_token"
)
UNSCORED = _on("a token with log-prob -inf has the gradient 1; here none", "impossible_token")
TEN = _on("a value above 10 is cut and has no gradient: pi below pi_ref / 14 or above 6e4 pi_ref", "masks", "extremes")
SIGN = _on(
    "the gradient of |d| is the sign of d; that of k1 is 1",
    *("rationals", "masks", "identical", "empty_response", "impossible_token", "extremes", "long", "token_advantages"),
)
OWN_MEAN = _on(
    "the bonus is a mean over response tokens whatever divides the loss; here both are divided alike",
    *("rationals", "masks", "identical", "empty_response", "impossible_token", "extremes", "long"),
)
LAMBDAS = ("1", "0.95", "0.5", "0")

_LOSS, _CORRECTION = "compute_policy_loss_", "compute_rollout_correction_weights"
_KL, _BONUS = "kl_penalty and agg_loss", "agg_loss of the entropy"
_OFF, _DEBUG = "compute_offpolicy_metrics", "calculate_debug_metrics"


def _option(over: str, kind: str) -> str:
    return f"token_{kind}" if over == "token" else f"seq_{over}_{kind}"


_Given = tuple[str, str, str] | tuple[str, str, str, Mapping[str, str]]


def _rows(peer: str, *given: _Given) -> tuple[Row, ...]:
    return tuple(
        Row(peer=peer, name=name, ours=ours, calls=calls, differs=known[0] if known else {})
        for name, ours, calls, *known in given
    )


def _gradients(peer: str, *given: _Given, section: str = "methods") -> tuple[Row, ...]:
    return tuple(
        Row(peer=row.peer, name=row.name, ours=f"{section}/{row.ours}/gradient", calls=row.calls, differs=row.differs)
        for row in _rows(peer, *given)
    )


VERL = (
    *_gradients(
        "verl",
        ("vanilla", "ppo-clip", f"{_LOSS}vanilla, token-mean, no dual clip"),
        ("vanilla, defaults", "ppo-clip", f"{_LOSS}vanilla, token-mean", DUAL),
        ("vanilla, clip higher", "dapo", f"{_LOSS}vanilla, token-mean, clip_ratio_high 0.28"),
        ("vanilla, mean of means", "grpo", f"{_LOSS}vanilla, seq-mean-token-mean"),
        ("vanilla, mean of means, size not given", "grpo", f"{_LOSS}vanilla, seq-mean-token-mean", EMPTY),
        ("vanilla, constant length", "dr-grpo", f"{_LOSS}vanilla, seq-mean-token-sum-norm, 1024"),
        ("vanilla, dual clip", "ppo-dual-clip", f"{_LOSS}vanilla, token-mean, clip_ratio_c 3"),
        ("sapo", "sapo", f"{_LOSS}sapo, tau_pos 1 and tau_neg 1.05"),
        ("gspo", "gspo", f"{_LOSS}gspo, seq-mean-token-mean"),
        ("geo_mean", "gmpo", f"{_LOSS}geo_mean", MEAN_A),
        ("cispo", "cispo", f"{_LOSS}cispo, token-mean"),
        ("cispo, tight", "cispo-tight", f"{_LOSS}cispo, seq-mean-token-sum", NO_SCORE),
        ("dppo_tv", "dppo-tv", f"{_LOSS}dppo_tv against mu, no cap"),
        ("dppo_tv, defaults", "dppo-tv", f"{_LOSS}dppo_tv against mu", CAP),
        ("dppo_kl", "dppo-kl", f"{_LOSS}dppo_kl against mu, no cap"),
        ("vanilla, token weights", "tis", f"{_CORRECTION}, token, 2.0"),
        ("vanilla, normalised weights", "tis-mean-one", f"{_CORRECTION}, token, 2.0, rollout_is_batch_normalize"),
        (
            "vanilla, normalised sequence weights",
            "tis-mean-one-sequence",
            f"{_CORRECTION}, sequence, 2.0, rollout_is_batch_normalize, no clip",
        ),
        ("vanilla, untruncated weights", "decoupled-ppo", f"{_CORRECTION}, token, no bound"),
        ("vanilla, masked weights", "icepop", f"{_CORRECTION}, token, 0.5_5.0"),
        ("vanilla, sequence weights", "tis-sequence", f"{_CORRECTION}, sequence, 2.0, no clip"),
        ("vanilla, masked sequence weights", "mask-sequence", f"{_CORRECTION}, sequence, 0.6_3.0, no clip"),
        (
            "vanilla, rejected responses",
            "sequence-mask",
            "compute_rollout_rejection_mask, seq_sum_k1, token-mean, no clip",
            KEPT,
        ),
        (
            "vanilla, token weights, token_k3",
            "truncate-and-mask",
            f"{_CORRECTION}, token, 1.3, and compute_rollout_rejection_mask, token_k3",
        ),
        *(
            (f"rejected by {_option(over, kind)}", f"rejection-{over}-{kind}", "compute_rollout_rejection_mask")
            for over, kind, *_ in REJECTED
        ),
        ("reinforce", "reinforce", f"{_LOSS}reinforce, seq-mean-token-sum", NO_SCORE),
        ("reinforce, size not given", "reinforce", f"{_LOSS}reinforce, seq-mean-token-sum", EMPTY | NO_SCORE),
        ("reinforce, token weights", "minirl-no-clip", f"{_LOSS}reinforce with {_CORRECTION}, token"),
        ("reinforce, sequence weights", "reinforce-is", f"{_LOSS}reinforce with {_CORRECTION}, sequence"),
        ("reinforce, seq_sum_k1", "mis", "compute_rollout_rejection_mask, seq_sum_k1, bounds of mu / pi"),
        ("reinforce, seq_mean_k1", "mis-geometric", "compute_rollout_rejection_mask, seq_mean_k1, bounds of mu / pi"),
        ("reinforce, wide seq_mean_k1", "geometric-mask", "compute_rollout_rejection_mask, bounds of mu / pi"),
        (
            "reinforce, seq_sum_k1, our bounds",
            "mis",
            "compute_rollout_rejection_mask, seq_sum_k1, at most 2",
            _on(RECIPROCAL, "rationals", "extremes", "long"),
        ),
    ),
    *_gradients(
        "verl",
        ("kl_loss, kl", "reference-k1", f"{_KL}, kl_loss_type kl", UNSCORED),
        ("kl_loss, abs", "reference-k1", f"{_KL}, kl_loss_type abs", SIGN),
        ("kl_loss, mse", "reference-k2", f"{_KL}, kl_loss_type mse", NOT_HELD),
        ("kl_loss, low_var_kl", "reference-k3", f"{_KL}, kl_loss_type low_var_kl", TEN),
        ("kl_loss, low_var_kl, mean of means", "reference-k3-length", f"{_KL}, seq-mean-token-mean", TEN),
        ("kl_loss, low_var_kl, token mean", "reference-k3-token-mean", f"{_KL}, token-mean", TEN),
        ("kl_loss, k1+", "reference-k2", f"{_KL}, kl_loss_type k1+", NOT_HELD),
        ("kl_loss, k3+", "reference-k2", f"{_KL}, kl_loss_type k3+", NOT_HELD),
        ("entropy_coeff, sum", "entropy", f"{_BONUS}, seq-mean-token-sum"),
        ("entropy_coeff, mean of means", "entropy-length", f"{_BONUS}, seq-mean-token-mean"),
        ("entropy_coeff, token mean", "entropy-token-mean", f"{_BONUS}, token-mean"),
        section="terms",
    ),
    *_rows(
        "verl",
        ("kl", "metrics/kl", _OFF),
        ("k3_kl", "metrics/k3_kl", _OFF),
        ("training_ppl", "metrics/training_ppl", _OFF, PPL),
        ("rollout_ppl", "metrics/rollout_ppl", _OFF, PPL),
        ("ppl_ratio", "metrics/ppl_ratio", _OFF, PPL),
        ("chi2_token", "metrics/chi2_token", _OFF),
        ("chi2_seq", "metrics/chi2_seq", _OFF, PPL),
        ("rollout_is_eff_sample_size", "metrics/rollout_is_eff_sample_size", f"{_CORRECTION}, token, 2.0"),
        ("rollout_probs_diff_mean", "metrics/rollout_probs_diff_mean", _DEBUG),
        ("rollout_probs_diff_std", "metrics/rollout_probs_diff_std", _DEBUG, ONE_STD),
        ("rollout_actor_probs_pearson_corr", "metrics/rollout_actor_probs_pearson_corr", _DEBUG),
        ("rollout_is_ratio_fraction_high", "receipts/tis/truncated", f"{_CORRECTION}, token, 2.0"),
        (
            "rollout_is_ratio_fraction_high, sequence",
            "receipts/tis-sequence/truncated",
            f"{_CORRECTION}, sequence, 2.0",
        ),
        ("pg_clipfrac", "receipts/ppo-clip/clip_upper+clip_lower", f"{_LOSS}vanilla", CLIPPED_ZERO),
        ("grpo advantage", "advantages/group_mean_std", "compute_grpo_outcome_advantage", ALONE),
        ("grpo advantage, no std", "advantages/group_mean", "compute_grpo_outcome_advantage", ALONE),
        ("rloo advantage", "advantages/leave_one_out", "compute_rloo_outcome_advantage", ALONE),
        (
            "reinforce_plus_plus advantage",
            "advantages/whitened",
            "compute_reinforce_plus_plus_outcome_advantage",
            MORE_TOKENS,
        ),
        (
            "reinforce_plus_plus_baseline advantage",
            "advantages/group_mean_whitened",
            "compute_reinforce_plus_plus_baseline_outcome_advantage",
            ALONE,
        ),
    ),
    *(
        row
        for lam in LAMBDAS
        for row in _rows(
            "verl",
            (f"gae, lambda {lam}", f"advantages/gae_{lam}", "compute_gae_advantage_return, returns less values"),
            (f"whitened gae, lambda {lam}", f"advantages/gae_{lam}_whitened", "compute_gae_advantage_return"),
        )
    ),
)
"""verl; agg_loss is given the number of responses unless a row says that it is not."""

TRL = (
    *_gradients(
        "trl",
        ("grpo", "grpo", "_compute_loss, loss_type grpo"),
        ("bnpo", "ppo-clip", "_compute_loss, loss_type bnpo"),
        ("dapo", "dapo", "_compute_loss, loss_type dapo, epsilon_high 0.28"),
        ("dr_grpo", "dr-grpo", "_compute_loss, loss_type dr_grpo, max_completion_length 1024"),
        ("grpo, sequence level", "gspo", "_compute_loss, importance_sampling_level sequence", SPREAD),
        ("bnpo, delta", "ppo-dual-clip", "_compute_loss, loss_type bnpo, delta 3"),
        ("sapo", "sapo", "_compute_loss, loss_type sapo"),
        ("grpo, off-policy mask", "opsm", "_compute_loss, off_policy_mask_threshold 0.5"),
        ("cispo", "cispo", "_compute_loss, loss_type cispo, epsilon_high 5"),
        ("vespo", "vespo", "_compute_loss, loss_type vespo against mu"),
        ("dapo, token_truncate", "tis", "vllm_importance_sampling_mode token_truncate, at most 2"),
        ("dapo, token_truncate, both", "tis-two-sided", "vllm_importance_sampling_mode token_truncate, 0.5 to 2"),
        ("grpo, token_mask", "icepop", "vllm_importance_sampling_mode token_mask, 0.5 to 5"),
        ("luspo, sequence_truncate", "tis-sequence", "vllm_importance_sampling_mode sequence_truncate, at most 2"),
        ("luspo, sequence_mask", "mask-sequence", "vllm_importance_sampling_mode sequence_mask, 0.6 to 3"),
    ),
    *_gradients(
        "trl",
        ("grpo, beta", "reference-k3-length", "_compute_loss, loss_type grpo, beta 1", NOT_HELD),
        ("bnpo, beta", "reference-k3-token-mean", "_compute_loss, loss_type bnpo, beta 1", NOT_HELD),
        ("dr_grpo, beta", "reference-k3-constant", "_compute_loss, loss_type dr_grpo, beta 1", NOT_HELD),
        ("luspo, beta", "reference-k3", "_compute_loss, loss_type luspo, beta 1", NOT_HELD),
        (
            "luspo, beta, use_bias_correction_kl",
            "reference-unbiased",
            "_compute_loss, loss_type luspo against mu, beta 1",
            NOT_HELD,
        ),
        ("bnpo, entropy_coef", "entropy-token-mean", "_compute_loss, loss_type bnpo, entropy_coef 1"),
        ("grpo, entropy_coef", "entropy-length", "_compute_loss, loss_type grpo, entropy_coef 1", OWN_MEAN),
        section="terms",
    ),
    *_rows(
        "trl",
        ("clip_ratio/high_mean", "receipts/grpo/clip_upper", "_compute_loss, loss_type grpo"),
        ("clip_ratio/low_mean", "receipts/grpo/clip_lower", "_compute_loss, loss_type grpo", CLIPPED_ZERO),
        ("scale_rewards group", "advantages/group_mean_std", "_generate_and_score_completions", TRL_STD),
        ("scale_rewards batch", "advantages/group_mean_batch_std", "_generate_and_score_completions", TRL_STD),
        ("scale_rewards none", "advantages/group_mean", "_generate_and_score_completions"),
    ),
)
"""TRL: methods of GRPOTrainer, given no model."""

TORCHRL = (
    *_gradients(
        "torchrl",
        ("GRPOLoss, token_mean", "ppo-clip", "GRPOLoss, clip_epsilon 0.2"),
        ("GRPOLoss, prompt_mean", "grpo", "GRPOLoss, clip_epsilon 0.2"),
        ("DAPO", "dapo", "DAPO, clip_epsilon 0.2 and 0.28"),
        ("CISPOLoss", "cispo-tight", "CISPOLoss, clip_epsilon 0.2 and 0.28, not aggregated", FLOW),
    ),
    *_rows(
        "torchrl",
        ("ESS", "metrics/token_eff_sample_size", "GRPOLoss, the ESS that it logs"),
        ("MCAdvantage", "advantages/group_mean_std", "MCAdvantage", RL_STD),
        *((f"gae, lambda {lam}", f"advantages/gae_{lam}", "generalized_advantage_estimate") for lam in LAMBDAS),
    ),
)
"""TorchRL."""

ROWS: dict[str, tuple[Row, ...]] = {"trl": TRL, "verl": VERL, "torchrl": TORCHRL}
