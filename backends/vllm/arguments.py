"""What the `[vllm]` section is in vLLM's own words: arguments of an engine, and the variables read at its import."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from firstorder.core.errors import ConfigError

from .config import Vllm

ON_CPU = not torch.accelerator.is_available()
ROUTERS = ["*mlp.gate"]  # what fp8 leaves alone, beside what it never touches: embeddings and the output head
EMULATED = {name: f"firstorder_{name}" for name in ("fp8_per_tensor", "fp8_per_block")}
"""The names under which vLLM knows the schemes of `fp8`, by those of its own kernels."""

INVARIANT = "VLLM_BATCH_INVARIANT"
LOG = "FIRSTORDER_SERVER_LOG"  # the environment variable with the file that a server's output is added to
COMMON = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
IN_PROCESS = COMMON | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
IN_PROCESS_ON_CPU = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def check_device(settings: Vllm) -> None:
    """Refuse what this machine's device cannot do.

    Raises:
        ConfigError: batch invariance or chunks of prompts on a CPU.
    """
    if settings.chunked_prefill and ON_CPU:
        raise ConfigError(
            "vllm.chunked_prefill = true needs a GPU: on a CPU vLLM fails where a response with a seed has its prompt "
            "run in parts; set it to false"
        )
    if settings.batch_invariant and ON_CPU:
        raise ConfigError(
            "vllm.batch_invariant = true needs a GPU: vLLM has no batch-invariant experts for CPUs, where its results "
            "do not depend on the batch anyway; set it to false"
        )


def arguments(settings: Vllm, folder: str) -> dict[str, Any]:
    """Arguments of `vllm.LLM`, and of its server as `--flags`."""
    flags: dict[str, Any] = {
        "model": folder,
        "dtype": settings.dtype,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "max_model_len": settings.max_prompt + settings.max_tokens,
        "max_num_seqs": settings.max_sequences,
        "kv_cache_memory_bytes": settings.kv_cache_mib << 20,
        "enable_prefix_caching": settings.prefix_caching,
        "enable_chunked_prefill": not ON_CPU if settings.chunked_prefill is None else settings.chunked_prefill,
        "enforce_eager": ON_CPU,
        "enable_return_routed_experts": True,
        "generation_config": "vllm",  # nothing of the folder's generation_config.json
        "logprobs_mode": "processed_logprobs",  # of the distribution sampled from, temperature included
    }
    if settings.truncates:
        flags["max_logprobs"] = settings.most_kept + 1
    if settings.tensor > 1:
        flags["tensor_parallel_size"] = settings.tensor
    if settings.max_batched_tokens is not None:
        flags["max_num_batched_tokens"] = settings.max_batched_tokens
    if settings.quantization != "none":
        flags["quantization"] = EMULATED[settings.quantization] if ON_CPU else settings.quantization
        if not ON_CPU:
            flags["quantization_config"] = {"ignore": ROUTERS}
    return flags


def sampling(settings: Vllm, ends: Sequence[int], vocabulary: int) -> dict[str, Any]:
    """What is asked for with every response, under the names of `SamplingParams` and of the completions API alike.

    All that moves the distribution is said, so that no default of a server or of a model folder does. Where tokens are
    left out, the log-probs of one token more than may be kept are asked for: -inf is the last, or too many were.
    """
    return {
        "n": 1,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k or -1,
        "min_p": settings.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "allowed_token_ids": None,
        "bad_words": [],
        "watermarking": False,
        "max_tokens": settings.max_tokens,
        "min_tokens": 0,
        "stop": [],
        "stop_token_ids": list(ends),
        "ignore_eos": True,  # the ends are those of the task, not the tokenizer's as well
        "skip_special_tokens": False,
        # 0: of the sampled token alone
        "logprobs": min(settings.most_kept + 1, vocabulary) if settings.truncates else 0,
    }


def environment(settings: Vllm) -> dict[str, str]:
    """Variables that `settings` decide and that vLLM reads when it is imported."""
    return {INVARIANT: str(int(settings.batch_invariant))}


def prepare(settings: Vllm) -> None:
    """Set the variables of a vLLM in this process, which must not have imported it under others.

    Raises:
        ConfigError: it has, or the device cannot do what is asked.
    """
    check_device(settings)
    variables = environment(settings)
    if "vllm" in sys.modules and any(os.environ.get(name, "0") != value for name, value in variables.items()):
        raise ConfigError(
            "vllm.batch_invariant is read when vLLM is imported, which has happened; start another process"
        )
    for name, value in (IN_PROCESS | (IN_PROCESS_ON_CPU if ON_CPU else {})).items():
        os.environ.setdefault(name, value)
    os.environ.update(variables)
    if ON_CPU:  # the compiled sampler costs seconds at the first call and gains nothing
        dynamo: Any = torch._dynamo.config
        dynamo.disable = True


def is_emulated(quantization: str | None) -> bool:
    """Whether vLLM's name of a quantisation is one that rounds on a CPU what a GPU computes in fp8."""
    return quantization in EMULATED.values()
