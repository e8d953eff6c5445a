"""TRL: the loss of its GRPO trainer, and the ratios and advantages that the trainer makes of rollouts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .inputs import Batch, gradient

Answer = Callable[[Batch], Any]
FREE = 1e9  # a bound that nothing meets


def answers() -> dict[str, Answer]:
    """By row, what this peer makes of a batch."""
    losses = {
        "grpo": _loss("grpo"),
        "bnpo": _loss("bnpo"),
        "dapo": _loss("dapo", high=0.28),
        "dr_grpo": _loss("dr_grpo"),
        "grpo, sequence level": _loss("grpo", low=0.0003, high=0.0004, importance_sampling_level="sequence"),
        "bnpo, delta": _loss("bnpo", delta=3.0),
        "sapo": _loss("sapo"),
        "grpo, off-policy mask": _loss("grpo", off_policy_mask_threshold=0.5),
        "cispo": _loss("cispo", high=5.0),
        "vespo": _loss("vespo", to="mu"),
        "dapo, token_truncate": _loss("dapo", high=0.28, mode="token_truncate", bounds=(None, 2.0)),
        "dapo, token_truncate, both": _loss("dapo", high=0.28, mode="token_truncate", bounds=(0.5, 2.0)),
        "grpo, token_mask": _loss("grpo", mode="token_mask", bounds=(0.5, 5.0)),
        "luspo, sequence_truncate": _free("sequence_truncate", (None, 2.0)),
        "luspo, sequence_mask": _free("sequence_mask", (0.6, 3.0)),
    }
    penalties = {
        "grpo, beta": _penalty("grpo"),
        "bnpo, beta": _penalty("bnpo"),
        "dr_grpo, beta": _penalty("dr_grpo"),
        "luspo, beta": _penalty("luspo"),
        "luspo, beta, use_bias_correction_kl": _penalty("luspo", corrected=True),
    }
    bonuses = {f"{kind}, entropy_coef": _bonus(kind) for kind in ("grpo", "bnpo")}
    counts = {f"clip_ratio/{side}_mean": _clipped(side) for side in ("high", "low")}
    return {name: _graded(loss) for name, loss in (losses | penalties).items()} | bonuses | counts


def of_rewards() -> dict[str, Callable[[list[list[float]]], Any]]:
    """By row, the advantages `[groups, G]` of groups of rewards."""
    return {f"scale_rewards {scale}": _advantages(scale) for scale in ("group", "batch", "none")}


def of_values() -> dict[str, Callable[[dict[str, Any], float], Any]]:
    """None: the trainer has no critic."""
    return {}


def _penalty(kind: str, *, corrected: bool = False) -> Callable[[Batch], Tensor]:
    """The loss where every advantage is 0 and `beta` is 1; corrected by π_θ / μ."""

    def loss(batch: Batch) -> Tensor:
        trainer = _trainer(kind, 0.2, 0.2, corrected=False, beta=1.0)
        trainer.args.use_bias_correction_kl = corrected
        return _computed(trainer, _worthless(batch), to="mu")

    return loss


def _bonus(kind: str) -> Answer:
    """The gradient by the entropy of the loss where `entropy_coef` is 1."""
    keys = {"_entropy_bonus_enabled": True, "use_adaptive_entropy": False, "entropy_coef": 1.0}
    return lambda batch: gradient(
        lambda given: _computed(_trainer(kind, 0.2, 0.2, corrected=False, **keys), given), batch, by="entropy"
    )


def _worthless(batch: Batch) -> Batch:
    """The same with every advantage 0, so that what is left of a loss is its terms."""
    return replace(batch, advantage=torch.zeros_like(batch.advantage))


def _graded(loss: Callable[[Batch], Tensor]) -> Answer:
    return lambda batch: gradient(loss, batch)


def _free(mode: str, bounds: tuple[float | None, float]) -> Callable[[Batch], Tensor]:
    return _loss("luspo", low=FREE, high=FREE, mode=mode, bounds=bounds)


def _loss(
    kind: str,
    low: float = 0.2,
    high: float = 0.2,
    *,
    to: str = "old",
    mode: str | None = None,
    bounds: tuple[float | None, float] = (None, 2.0),
    **keys: Any,
) -> Callable[[Batch], Tensor]:
    """`_compute_loss` of the trainer on the ratio of π_θ `to` another policy, corrected by old / mu in a mode."""

    def loss(batch: Batch) -> Tensor:
        return _computed(_trainer(kind, low, high, mode is not None, **keys), batch, to, mode, bounds)

    return loss


def _computed(
    trainer: Any,
    batch: Batch,
    to: str = "old",
    mode: str | None = None,
    bounds: tuple[float | None, float] = (None, 2.0),
) -> Tensor:
    mask = batch.mask.long()
    inputs = {
        "prompt_ids": torch.zeros(batch.size, 1, dtype=torch.long),
        "prompt_mask": torch.ones(batch.size, 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": batch.advantage,
        "old_per_token_logps": getattr(batch, to),
        "num_items_in_batch": mask.sum(),
        "sampling_per_token_logps": batch.mu,
        "ref_per_token_logps": batch.ref,
    }
    if mode is not None:
        inputs["importance_sampling_ratio"] = _scored(batch, mode, bounds)["importance_sampling_ratio"]
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (batch.theta, batch.entropy, None)
    loss: Tensor = _class()._compute_loss(trainer, None, inputs)
    return loss


def _class() -> Any:
    return import_module("trl.trainer.grpo_trainer").GRPOTrainer


def _clipped(side: str) -> Answer:
    def share(batch: Batch) -> float:
        trainer = _trainer("grpo", 0.2, 0.2, corrected=False)
        _computed(trainer, batch)
        (found,) = trainer._metrics["train"][f"clip_ratio/{side}_mean"]
        return float(found)

    return share


def _accelerator() -> SimpleNamespace:
    """One process."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        sync_gradients=True,
    )


def _trainer(kind: str, low: float, high: float, corrected: bool, delta: float | None = None, **keys: Any) -> Any:
    """What `_compute_loss` reads of a trainer, and no model."""
    known = {
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "loss_type": kind,
        "epsilon_low": low,
        "epsilon_high": high,
        "use_vllm": corrected,
        "vllm_importance_sampling_correction": corrected,
        "model": SimpleNamespace(training=True),
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": 1024,
        "accelerator": _accelerator(),
        "_entropy_bonus_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "get_gamma_weights": _class().get_gamma_weights,
        "get_off_policy_mask": _class().get_off_policy_mask,
        "args": SimpleNamespace(
            delta=delta,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            steps_per_generation=1,
            vespo_k_pos=2.0,
            vespo_lambda_pos=3.0,
            vespo_k_neg=3.0,
            vespo_lambda_neg=2.0,
        ),
    }
    return SimpleNamespace(**known | keys)


def _scored(batch: Batch, mode: str, bounds: tuple[float | None, float]) -> dict[str, Any]:
    """`_generate_and_score_completions` on responses with these log-probs, corrected by a mode."""
    trainer = _generator(batch.mask, batch.old, batch.mu)
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    trainer.vllm_importance_sampling_mode = mode
    trainer.vllm_importance_sampling_clip_min, trainer.vllm_importance_sampling_clip_max = bounds
    return _run(trainer, torch.zeros(batch.size, dtype=torch.float64), batch.size, "group")


def _advantages(scale: str) -> Callable[[list[list[float]]], Any]:
    def made(groups: list[list[float]]) -> Any:
        rewards = torch.tensor(groups, dtype=torch.float64)
        mask = torch.ones(rewards.numel(), 1, dtype=torch.bool)
        trainer = _generator(mask, mask.double(), mask.double())
        found = _run(trainer, rewards.flatten(), rewards.shape[-1], scale)["advantages"]
        return found.reshape(rewards.shape).tolist()

    return made


def _run(trainer: Any, rewards: Tensor, group: int, scale: str) -> dict[str, Any]:
    trainer._calculate_rewards = lambda *_: rewards[:, None]
    trainer.num_generations = group
    trainer.scale_rewards = scale
    found: dict[str, Any] = _class()._generate_and_score_completions(trainer, [{"prompt": ""}] * len(rewards))
    return found


def _generator(mask: Tensor, old: Tensor, mu: Tensor) -> Any:
    """What `_generate_and_score_completions` reads of a trainer whose rollouts are these, and no model."""
    size, width = mask.shape
    prompts, tokens = [[0]] * size, [[0] * width] * size
    rollouts: tuple[Any, ...] = (prompts, tokens, mask.long().tolist(), [""] * size, mu.tolist(), {}, None, None)
    return SimpleNamespace(
        accelerator=_accelerator(),
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        environment_factories=None,
        environments=None,
        tools=None,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        _generate=lambda _: rollouts,
        _get_per_token_logps_and_entropies=lambda *_, **__: (old, None, None),
        num_iterations=1,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        beta=0.0,
        reward_weights=torch.ones(1, dtype=torch.float64),
        multi_objective_aggregation="sum_then_normalize",
        reward_funcs=[None],
        reward_func_names=["reward"],
        log_multimodal=False,
        _metrics={"train": defaultdict(list)},
        _logs={
            "prompt": [],
            "completion": [],
            "advantages": [],
            "rewards": defaultdict(list),
            "extra": defaultdict(list),
        },
        _pending_extra_logs={},
        _pending_metrics={},
        args=SimpleNamespace(
            per_device_train_batch_size=size,
            gradient_checkpointing_kwargs=None,
            gradient_accumulation_steps=1,
            steps_per_generation=1,
        ),
    )
