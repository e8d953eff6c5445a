"""The `[vllm]` section: sampling, numerics and memory of the rollout engine, and how far it may stray from π."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from firstorder.core.recipe import Section

PROBE_LIMITS = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}
REACHED = ("servers", "timeout", "shared_folder")  # where the servers are; a run may be resumed with other ones
LOW_PRECISION_LIMIT = 0.5  # of a quantised KV cache, whatever the dtype


class Vllm(Section):
    """The rollout engine. There is no top-p and no top-k: π could not be scored under the same distribution."""

    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e5m2"] = Field("auto", description="auto is `dtype`")
    temperature: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="of sampling; π is scored at the same")
    max_tokens: int = Field(24, ge=1, description="longest response")
    max_prompt: int = Field(104, ge=1, description="longest prompt")
    max_sequences: int = Field(256, ge=1, description="responses decoded together")
    kv_cache_mib: int = Field(64, ge=1, description="memory of the KV cache")
    prefix_caching: bool = True
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

    @property
    def limit(self) -> float:
        """The largest mean |Δ log p| of a probe, in nats."""
        if self.probe_limit is not None:
            return self.probe_limit
        return PROBE_LIMITS[self.dtype] if self.kv_cache_dtype == "auto" else LOW_PRECISION_LIMIT
