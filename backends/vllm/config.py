"""The `[vllm]` section: sampling, numerics and memory of the rollout engine, and how far it may stray from π."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from firstorder.core.recipe import Section

PROBE_LIMITS = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}
REACHED = ("servers", "timeout", "shared_folder")  # where the servers are; a run may be resumed with other ones
LOW_PRECISION_LIMIT = 0.5  # with 8-bit weights or an 8-bit KV cache, whatever the dtype


class Vllm(Section):
    """The rollout engine. There is no top-p and no top-k: π could not be scored under the same distribution."""

    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    quantization: Literal["none", "fp8_per_tensor", "fp8_per_block"] = Field(
        "none", description="of weights and activations, routers excluded; emulated on a CPU"
    )
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e5m2"] = Field("auto", description="auto is `dtype`")
    batch_invariant: bool = Field(False, description="kernels whose results do not depend on the batch; for GPUs")
    temperature: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="of sampling; π is scored at the same")
    max_tokens: int = Field(24, ge=1, description="longest response")
    max_prompt: int = Field(104, ge=1, description="longest prompt")
    max_sequences: int = Field(256, ge=1, description="responses decoded together")
    max_batched_tokens: int | None = Field(None, ge=1, description="tokens run together; vLLM's own unless given")
    kv_cache_mib: int = Field(64, ge=1, description="memory of the KV cache")
    prefix_caching: bool = True
    chunked_prefill: bool | None = Field(
        None, description="a prompt may be run in parts, beside responses; on GPUs unless given"
    )
    tensor: int = Field(1, ge=1, description="tensor parallel degree of a server")
    servers: tuple[str, ...] = Field((), description="addresses of replicas over HTTP; none for the same process")
    timeout: float = Field(600.0, gt=0.0, allow_inf_nan=False, description="seconds that a server is waited for")
    shared_folder: str = Field("", description="where weights are written for servers; must be one that they can read")
    probe_prompts: int = Field(8, ge=1, description="responses that check each weight sync")
    probe_limit: float | None = Field(
        None, gt=0.0, allow_inf_nan=False, description="largest mean |Δ log p| of a probe, nats; by dtype unless given"
    )

    @field_validator("servers")
    @classmethod
    def _addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for server in servers:
            if not server.startswith(("http://", "https://")):
                raise ValueError("an address looks like http://127.0.0.1:8001")
        return servers

    @model_validator(mode="after")
    def _kernels_exist(self) -> Self:
        if self.quantization != "none" and self.dtype == "float32":
            raise ValueError(
                f"vllm.quantization = {self.quantization} wants vllm.dtype = bfloat16 or float16, as vLLM's kernels "
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
    def limit(self) -> float:
        """The largest mean |Δ log p| of a probe, in nats."""
        if self.probe_limit is not None:
            return self.probe_limit
        low = self.quantization != "none" or self.kv_cache_dtype != "auto"
        return LOW_PRECISION_LIMIT if low else PROBE_LIMITS[self.dtype]
