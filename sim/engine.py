"""The `[sim.numerics]` section: how one engine departs from exact float64 arithmetic."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from firstorder.core.settings.section import SEED, SEED_WHY, Section, within

Precision = Literal["float64", "float32", "bf16", "fp16"]
NOISE, NOISE_WHY = "[0, 100]", "noise is relative, and 1 drowns what it is added to"
PIECES, PIECES_WHY = "[1, 65536]", "no product is longer"


class Numerics(Section):
    """One engine's departure from exact float64 arithmetic.

    - `exact`: none.
    - `noise`: router logits and expert outputs plus Gaussian noise of relative size `scale`; `router_scale` and
      `expert_scale` set the two apart, and `head_scale` adds the same to the output logits.
    - `bf16`, `fp16`: operands, products and residuals rounded to the format, accumulation exact.
    - `fp8`: e4m3 weights and activations (`granularity` tensor or block), router and head in bf16, outputs bf16.
    - `int8`: per-channel weights and per-token activations, router and head in bf16, outputs bf16.
    - `split`: products summed in `split` pieces in `accumulate` precision: another reduction order.
    - `gate_order`: gates by gather-then-softmax instead of softmax-then-gather (or the reverse), in `accumulate`.
    - `batch`: the reduction split of every product depends on the batch it ran in: random per call.
    """

    kind: Literal["exact", "noise", "bf16", "fp16", "fp8", "int8", "split", "gate_order", "batch"] = Field(
        "exact", description="how the engine departs from float64"
    )
    scale: float = within(0.1, NOISE, NOISE_WHY, "relative size of the noise; read by `noise`")
    router_scale: float | None = within(None, NOISE, NOISE_WHY, "the same on router logits; unset: `scale`")
    expert_scale: float | None = within(None, NOISE, NOISE_WHY, "the same on expert outputs; unset: `scale`")
    head_scale: float = within(0.0, NOISE, NOISE_WHY, "the same on output logits; read by `noise`")
    fresh: bool = Field(
        False,
        description="noise is drawn at every token of every response, one of `sim.draws` equally likely ones; else the "
        "context fixes it; read by `noise`",
    )
    granularity: Literal["tensor", "block"] = Field("tensor", description="what shares a scale; read by `fp8`")
    block: int = within(8, PIECES, PIECES_WHY, "edge of a block; read by `fp8` with `granularity = block`")
    split: int = within(4, PIECES, PIECES_WHY, "pieces that a product is summed in; read by `split`")
    accumulate: Precision = Field("bf16", description="of partial sums; read by `split`, `gate_order` and `batch`")
    seed: int = within(0, SEED, SEED_WHY, "of the noise, or of the draws; read by `noise` and `batch`")

    @property
    def plain(self) -> bool:
        """Whether products are as float64 has them."""
        return self.kind in ("exact", "noise", "gate_order")

    @property
    def drawn(self) -> bool:
        """Whether every token is computed by a draw of its own."""
        return self.kind == "noise" and self.fresh

    @model_validator(mode="after")
    def _accumulate_rounds(self) -> Self:
        if self.kind in ("split", "gate_order", "batch") and self.accumulate == "float64":
            raise ValueError(
                f"numerics.kind = {self.kind} changes nothing in float64; set accumulate = float32 or bf16"
            )
        return self
