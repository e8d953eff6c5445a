"""The `[torchtitan]` section: the model, its numerics, how batches are packed and how the model is laid out."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from firstorder.core.recipe import Section


class Torchtitan(Section):
    """The training engine. Lengths are in tokens."""

    model: str = Field(
        "", description="folder with config.json, *.safetensors and a tokenizer, as Hugging Face saves it"
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the forward and backward pass")
    activation_checkpoint: Literal["none", "selective", "full"] = "none"
    pack_length: int = Field(256, ge=2, description="responses are packed into rows of this length")
    microbatch_rows: int = Field(16, ge=1, description="rows in one forward and backward")
    loss_chunks: int = Field(1, ge=1, description="parts of a row whose logits are made one after the other")
    compile: Literal["none", "aot_eager", "inductor"] = Field("none", description="torch.compile of each block")
    shard: int = Field(-1, ge=-1, description="FSDP degree; -1 for all ranks that are left")
    tensor: int = Field(1, ge=1, description="tensor parallel degree; divides `expert`")
    expert: int = Field(1, ge=1, description="expert parallel degree")
    timeout: float = Field(
        1800.0, gt=0.0, allow_inf_nan=False, description="seconds that a rank waits for the others, rollouts included"
    )
    warmup_steps: int = Field(0, ge=0, description="updates of linear learning-rate warm-up")
    checkpoint_every: int = Field(20, ge=1, description="steps between checkpoints")
    evaluate_every: int = Field(10, ge=0, description="steps between evaluations on held-out prompts; 0 for none")
    evaluate_prompts: int = Field(64, ge=1, description="held-out prompts of an evaluation")
    seed: int = Field(0, ge=0, description="of the prompts and of every sample")

    @model_validator(mode="after")
    def _layout_is_sound(self) -> Self:
        if self.shard == 0:
            raise ValueError("torchtitan.shard must be -1 or at least 1, got 0")
        if self.expert % self.tensor:
            raise ValueError(
                f"torchtitan.tensor = {self.tensor} with torchtitan.expert = {self.expert}: tensor parallelism of an "
                "MoE gives wrong gradients without expert parallelism; set expert to a multiple of tensor"
            )
        if self.pack_length % self.tensor:
            raise ValueError(
                f"torchtitan.pack_length = {self.pack_length} must be a multiple of torchtitan.tensor = {self.tensor}, "
                "whose ranks share a row; round it up"
            )
        if self.loss_chunks > self.pack_length:
            raise ValueError(
                f"torchtitan.loss_chunks = {self.loss_chunks} must be at most pack_length = {self.pack_length}; "
                "lower it"
            )
        return self

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.compile == "none":
            return self
        if self.dtype != "bfloat16":
            raise ValueError(
                f"torchtitan.compile = {self.compile} with dtype = {self.dtype}: grouped matrix products compile in "
                "bfloat16 alone; set dtype = bfloat16 or compile = none"
            )
        if self.expert > 1 and self.activation_checkpoint != "none":
            raise ValueError(
                f"torchtitan.compile = {self.compile} with expert = {self.expert} and activation_checkpoint = "
                f"{self.activation_checkpoint} fails in torch 2.13; set activation_checkpoint = none or compile = none"
            )
        return self


CHANGEABLE = (
    *("pack_length", "microbatch_rows", "activation_checkpoint", "loss_chunks", "compile", "shard", "tensor", "expert"),
    *("timeout", "checkpoint_every"),
)
"""Keys that say how a run is computed and not what: a run may be resumed with other values of them."""
