"""What servers say they are, held against each other and against what a run wants of them, before it samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firstorder.backends.folder import Shape, read_shape
from firstorder.core.errors import ConfigError

from .arguments import EMULATED
from .client import START, call
from .config import Vllm

SIZES = ("num_hidden_layers", "hidden_size", "num_experts", "num_experts_per_tok", "vocab_size")
NUMERICS = ("dtype", "kv_cache_dtype", "quantization", "batch_invariant")
LOGPROBS = "processed_logprobs"  # of the distribution that is sampled
PLAIN = {served: name for name, served in EMULATED.items()} | {None: "none"}

Description = Mapping[str, Any]
"""`SIZES`, `NUMERICS` and `max_model_len` of a server, as vLLM names them."""


def check_servers(settings: Vllm, folder: str) -> Description:
    """What the servers of a run say they are, which is one thing.

    Raises:
        ServerError: a server does not answer, or is not one that `backends.vllm.serve` started.
        ConfigError: see `check_replicas`.
    """
    descriptions = {server: call(server, settings.timeout, "describe")[0] for server in settings.servers}
    check_replicas(descriptions, settings, read_shape(Path(folder)), folder)
    return dict(descriptions[settings.servers[0]])


def check_replicas(descriptions: Mapping[str, Description], settings: Vllm, shape: Shape, folder: str) -> None:
    """Refuse servers that differ, or that are not of this run.

    Args:
        descriptions: what each server says, by address.
        settings: the `[vllm]` section.
        shape: of the trainer's model.
        folder: where that is.

    Raises:
        ConfigError: the first difference, with the address.
    """
    (first, said), *others = descriptions.items()
    for server, other in others:
        for name in (*SIZES, "max_model_len", *NUMERICS):
            if other[name] != said[name]:
                raise ConfigError(
                    f"the vLLM servers {first} and {server} differ: {name} = {_plain(said[name])} and "
                    f"{_plain(other[name])}; start all replicas with the same model and settings"
                )
    for name in SIZES:
        if said[name] != getattr(shape, name):
            raise ConfigError(
                f"{first} serves another model: its {name} = {said[name]}, and {folder} has {getattr(shape, name)}; "
                "start it with that folder"
            )
    longest = settings.max_prompt + settings.max_tokens
    if said["max_model_len"] < longest:
        raise ConfigError(
            f"{first} takes {said['max_model_len']} tokens, fewer than vllm.max_prompt + vllm.max_tokens = {longest}; "
            "start it with the same settings"
        )
    for server, each in descriptions.items():
        if each.get("logprobs_mode", LOGPROBS) != LOGPROBS or each.get("defaults"):
            raise ConfigError(
                f"{server} runs with logprobs_mode = {each['logprobs_mode']} and defaults {each['defaults']}: it would "
                f"cut responses or report log-probs of another distribution; {START}"
            )
    for server, each in descriptions.items():
        if settings.truncates and 0 <= each.get("max_logprobs", 0) <= settings.most_kept:
            raise ConfigError(
                f"{server} returns {each.get('max_logprobs', 0)} log-probs a token, and vllm.max_kept = "
                f"{settings.most_kept} tokens kept need one more; start it with the same settings"
            )
    for name in NUMERICS:
        if _plain(said[name]) != getattr(settings, name):
            raise ConfigError(
                f"{first} runs with {name} = {_plain(said[name])}, and vllm.{name} = {getattr(settings, name)}; "
                "start it with the same settings"
            )


def _plain(value: Any) -> Any:
    """A value as `[vllm]` writes it."""
    return PLAIN.get(value, value)
