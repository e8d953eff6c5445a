"""The `[torchtitan]` section: the model, its numerics, how batches are packed and how the model is laid out."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from firstorder.core.settings.section import COUNT_WHY, Place, Section, within

POSITIONS, POSITIONS_WHY = "[1, 16777216]", "no model has so many positions"
DEGREE_WHY = "it is a number of ranks, and -1 stands for all that are left where that is offered"
WEEK = "(0, 604800]"
WEEK_WHY = "no rank takes more than a week"


class Torchtitan(Section):
    """The training engine. Lengths are in tokens."""

    model: Place = Field(
        "",
        description="folder with config.json, safetensors and a tokenizer, as Hugging Face saves a Qwen3-MoE",
        examples=["models/terse"],
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="of the forward and backward pass; weights and optimizer are float32"
    )
    activation_checkpoint: Literal["none", "selective", "full"] = Field(
        "none", description="which activations are computed again in the backward pass"
    )
    pack_length: int = within(
        256,
        "[2, 16777216]",
        POSITIONS_WHY,
        "responses are packed into rows of this length, a multiple of `tensor`",
    )
    microbatch_rows: int = within(16, "[1, 1048576]", "no batch has more", "rows in one forward and backward")
    loss_chunks: int = within(1, POSITIONS, POSITIONS_WHY, "parts of a row whose logits are made one after the other")
    compile: Literal["none", "aot_eager", "inductor"] = Field(
        "none", description="torch.compile of each block, in bfloat16; `aot_eager` is quick to compile"
    )
    shard: int = within(-1, "[-1, 65536]", DEGREE_WHY, "FSDP2 degree; -1 for the ranks over `tensor`")
    tensor: int = within(1, "[1, 65536]", DEGREE_WHY, "tensor parallel degree; divides `expert` and the heads")
    expert: int = within(1, "[1, 65536]", DEGREE_WHY, "expert parallel degree; divides ranks and experts")
    timeout: float = within(1800.0, WEEK, WEEK_WHY, "seconds that a rank waits for the others, rollouts too")
    warmup_steps: int = within(0, "[0, 1000000000]", COUNT_WHY, "updates of linear learning-rate warm-up")
    checkpoint_every: int = within(20, "[1, 1000000000]", COUNT_WHY, "steps between checkpoints")
    evaluate_every: int = within(
        10, "[0, 1000000000]", COUNT_WHY, "steps between evaluations on held-out prompts, `eval/reward`; 0 for none"
    )
    evaluate_prompts: int = within(64, "[1, 1048576]", "no batch holds more", "held-out prompts of an evaluation")
    seed: int = within(
        0, "[0, 4294967295]", "vLLM seeds numpy with it, which takes 32 bits", "of the prompts and of every sample"
    )

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
                f"torchtitan.compile = {self.compile} with dtype = {self.dtype}: grouped matrix products compile "
                "only in bfloat16; set dtype = bfloat16 or compile = none"
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
