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
    shard: int = Field(-1, ge=-1, description="FSDP degree; -1 for all ranks that are left")
    expert: int = Field(1, ge=1, description="expert parallel degree")
    warmup_steps: int = Field(0, ge=0, description="updates of linear learning-rate warm-up")
    checkpoint_every: int = Field(20, ge=1, description="steps between checkpoints")
    evaluate_every: int = Field(10, ge=0, description="steps between evaluations on held-out prompts; 0 for none")
    evaluate_prompts: int = Field(64, ge=1, description="held-out prompts of an evaluation")
    seed: int = Field(0, ge=0, description="of the prompts and of every sample")

    @model_validator(mode="after")
    def _layout_is_sound(self) -> Self:
        if self.shard == 0:
            raise ValueError("torchtitan.shard must be -1 or at least 1, got 0")
        return self
