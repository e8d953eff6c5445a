"""The `[vllm]` section: sampling, numerics and memory of the rollout engine, and how far it may stray from π."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from firstorder.core.settings.section import Place, Section, within

PROBE_LIMITS = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}
REACHED = ("servers", "timeout", "shared_folder")  # where the servers are; a run may be resumed with other ones
TOKENS, TOKENS_WHY = "[1, 16777216]", "no model has so many positions"
TOKENS_WHY_KEPT = "no vocabulary has so many tokens"
DEFAULT_KEPT = 256  # tokens of a nucleus: their ids go with every sampled token, as vLLM's log-probs
LOW_PRECISION_LIMIT = 0.5  # with 8-bit weights or an 8-bit KV cache, whatever the dtype


def _is_address(server: str) -> bool:
    try:
        parts = urlsplit(server)
        port = parts.port  # raises where it is none
    except ValueError:
        return False
    plain = server.isascii() and server.isprintable() and " " not in server
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


class Vllm(Section):
    """The rollout engine. Of top-p, top-k and min-p it sends what was kept at each token, and π is scored over that."""

    dtype: Literal["float32", "float16", "bfloat16"] = Field("bfloat16", description="of weights and activations")
    quantization: Literal["none", "fp8_per_tensor", "fp8_per_block"] = Field(
        "none", description="of weights and activations, routers excluded; emulated on a CPU"
    )
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e5m2"] = Field(
        "auto", description="`auto` is `dtype`; `fp8` (e4m3) and `fp8_e5m2` are real on a CPU too"
    )
    batch_invariant: bool = Field(
        False,
        description="kernels whose results do not depend on the batch; refused on a CPU, whose results do not anyway",
    )
    temperature: float = within(
        1.0, "[0.01, 100]", "vLLM raises a lower one to 0.01 by itself", "of sampling; π is scored at the same"
    )
    min_p: float = within(
        0.0, "[0, 1)", "it is a share", "leaves out what is less likely than so much of the likeliest"
    )
    top_k: int = within(
        0, "[0, 1048576]", TOKENS_WHY_KEPT, "samples from so many of the likeliest tokens, and those that tie; 0: all"
    )
    top_p: float = within(
        1.0, "(0, 1]", "it is a share", "samples from the likeliest tokens up to so much of what the two above leave"
    )
    max_kept: int | None = within(
        None,
        "[1, 1048576]",
        TOKENS_WHY_KEPT,
        "tokens that a position may be sampled from where one of the three above acts; more stop the run; unset: twice "
        "`top_k`, or 256 without",
    )
    max_tokens: int = within(24, TOKENS, TOKENS_WHY, "longest response, or turn")
    max_prompt: int = within(
        104, TOKENS, TOKENS_WHY, "longest prompt; of several turns, longest of all that precedes a turn"
    )
    max_sequences: int = within(256, "[1, 65536]", "each has a thread and a slot", "responses decoded together")
    max_batched_tokens: int | None = within(
        None, TOKENS, "no GPU runs more at once", "tokens run together; vLLM's own unless given", example=2048
    )
    kv_cache_mib: int = within(64, "[1, 16777216]", "no machine has 16 TiB for it", "memory of the KV cache")
    prefix_caching: bool = Field(True, description="keep what was computed for a prefix that returns")
    chunked_prefill: bool | None = Field(
        None,
        description="a prompt may be run in parts, beside responses; on GPUs unless given; refused on a CPU, where "
        "vLLM fails on a response with a seed whose prompt is in parts",
    )
    tensor: int = within(1, "[1, 1024]", "it is a number of GPUs", "tensor parallel degree of a server")
    servers: tuple[str, ...] = Field(
        (),
        description="addresses of replicas over HTTP; none: in this process",
        examples=[("http://127.0.0.1:8001",)],
    )
    timeout: float = within(
        600.0,
        "(0, 604800]",
        "no server takes more than a week to answer",
        "seconds that a server is waited for, then asked again, before the run stops",
    )
    shared_folder: Place = Field(
        "",
        description="where weights are written for servers: a folder that they all can read, best in memory "
        "(`/dev/shm`); unset: the system's temporary folder",
        examples=["/dev/shm"],
    )
    probe_prompts: int = within(8, "[1, 65536]", "one at least is compared", "responses that check each weight sync")
    probe_limit: float | None = within(
        None,
        "(0, 100]",
        "no two engines with the same weights are that far apart",
        "largest mean |Δ log p| of a probe, nats; unset: 0.001 in float32, 0.05 in float16, 0.2 in bfloat16, 0.5 with "
        "fp8 weights or an fp8 KV cache",
    )

    @field_validator("servers")
    @classmethod
    def _addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for server in servers:
            if not _is_address(server):
                raise ValueError("an address looks like http://127.0.0.1:8001")
        return servers

    @model_validator(mode="after")
    def _kernels_exist(self) -> Self:
        if self.quantization != "none" and self.dtype == "float32":
            raise ValueError(
                f"vllm.quantization = {self.quantization} needs vllm.dtype = bfloat16 or float16, as vLLM's kernels "
                "do; got float32"
            )
        if self.max_batched_tokens is not None:
            longest = self.max_prompt + self.max_tokens
            if self.chunked_prefill is False and self.max_batched_tokens < longest:
                raise ValueError(
                    f"vllm.max_batched_tokens must hold vllm.max_prompt + vllm.max_tokens = {longest} where "
                    f"vllm.chunked_prefill = false, got {self.max_batched_tokens}; raise it"
                )
            if self.max_batched_tokens < self.max_sequences:
                raise ValueError(
                    f"vllm.max_batched_tokens must be at least vllm.max_sequences = {self.max_sequences}, got "
                    f"{self.max_batched_tokens}; raise it, or lower vllm.max_sequences"
                )
        return self

    @property
    def truncates(self) -> bool:
        """Whether a token may be sampled from fewer tokens than there are."""
        return bool(self.min_p or self.top_k) or self.top_p < 1

    @property
    def most_kept(self) -> int:
        """Tokens that a position may be sampled from, at most, where some are left out."""
        return self.max_kept or 2 * self.top_k or DEFAULT_KEPT

    @property
    def limit(self) -> float:
        """The largest mean |Δ log p| of a probe, in nats."""
        if self.probe_limit is not None:
            return self.probe_limit
        low = self.quantization != "none" or self.kv_cache_dtype != "auto"
        return LOW_PRECISION_LIMIT if low else PROBE_LIMITS[self.dtype]
