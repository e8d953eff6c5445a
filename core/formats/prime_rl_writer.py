"""Samples as prime-rl's token exports, so that what reads those reads a run of this program: see `prime_rl`.

    log_importance_ratio = log π_old - log μ = D,   importance_ratio = e^D,   mismatch_kl = e^D - D - 1,
    prob_delta = π_old - μ

Numbers are written with all their digits; prime-rl's own are of single precision. Its columns about its own loss
(`is_masked`, `is_masked_high`, `is_masked_low`) are null, as it writes them for another loss than its default one.
Position 0, where it has log(1/V) of the trainer, has what the sample has there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .prime_rl import STABLE, VERSION
from .sample import Sample

FOLDER = "token_exports"
ENVIRONMENT = "firstorder"
UNKNOWN = ("is_masked", "is_masked_high", "is_masked_low")


def write(folder: Path, step: int, samples: Iterable[Sample]) -> Path:
    """Write a step's samples, one at a time: `FOLDER/token_exports/step_N/rank_0.jsonl`, whole or not at all.

    Args:
        folder: of the run.
        step: the global step; what was written of it before is replaced.
        samples: its responses. As in prime-rl, one without a token in the loss is left out.

    Returns:
        The file; `STABLE` beside it says that it is whole.

    Raises:
        OSError: it cannot be written.
    """
    place = folder / FOLDER / f"step_{step}"
    place.mkdir(parents=True, exist_ok=True)
    target, stable = place / "rank_0.jsonl", place / STABLE
    partial = place / f".rank_0.{os.getpid()}.partial"
    try:
        with partial.open("w", encoding="utf-8") as file:
            for index, sample in enumerate(sample for sample in samples if sample.mask.any()):
                file.write(json.dumps(record(step, index, sample), separators=(",", ":"), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        stable.unlink(missing_ok=True)
        os.replace(partial, target)
        stable.touch()
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return target


def record(step: int, index: int, sample: Sample) -> dict[str, Any]:
    """The line of a response.

    Args:
        step: the global step.
        index: the response's place in the file.
        sample: the response.
    """
    length = len(sample.tokens)
    columns = {
        "inference_logprobs": sample.logp_mu,
        "trainer_logprobs": sample.logp_old,
        "entropy": sample.entropy,
        **_ratios(sample.logp_mu, sample.logp_old),
        **dict.fromkeys(UNKNOWN),
    }
    mask, advantages = sample.mask.tolist(), _numbers(sample.advantage, length)
    reward = None if sample.reward is None else torch.full((length,), sample.reward, dtype=torch.float64)
    return {
        "schema_version": VERSION,
        "step": step,
        "export_step": step,
        "rank": 0,
        "micro_step": 0,
        "micro_sequence_idx": index,
        "export_sequence_idx": index,
        "run_id": None,
        "env_name": ENVIRONMENT,
        "token_ids": sample.tokens.tolist(),
        "position_ids": list(range(length)),
        "loss_mask": mask,
        "advantages": advantages,
        "losses": [{"rl": {"advantage": a, "mask": m}} for a, m in zip(advantages, mask, strict=True)],
        "rewards": _numbers(reward, length),
        **{name: _numbers(values, length) for name, values in columns.items()},
    }


def _ratios(mu: Tensor | None, old: Tensor | None) -> dict[str, Tensor | None]:
    if mu is None or old is None:
        return dict.fromkeys(("mismatch_kl", "log_importance_ratio", "importance_ratio", "prob_delta"))
    log_ratio = old - mu
    ratio = log_ratio.exp()
    return {
        "mismatch_kl": ratio - log_ratio - 1,
        "log_importance_ratio": log_ratio,
        "importance_ratio": ratio,
        "prob_delta": old.exp() - mu.exp(),
    }


def _numbers(values: Tensor | None, length: int) -> list[float | None]:
    """JSON numbers, null where there is none."""
    if values is None:
        return [None] * length
    if values.isfinite().all():
        return list(values.tolist())
    return [x if known else None for x, known in zip(values.tolist(), values.isfinite().tolist(), strict=True)]
