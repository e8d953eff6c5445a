"""The `[task]` section: what is to be learnt on the real engines, from which problems, and what a verifier may use."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from firstorder.core.recipe import Section

from .sandbox import Isolation, Limits

Kind = Literal["reasoning-gym", "sums", "math", "code", "text", "guess"]
FILES: tuple[Kind, ...] = ("math", "code", "text")  # kinds whose problems are read from files


class TaskSettings(Section):
    """The task. Its reward is in [0, 1]."""

    kind: Kind = "reasoning-gym"
    system: str | None = Field(None, description="instruction before every question; by kind unless given")
    dataset: str = Field("basic_arithmetic", description="of reasoning-gym")
    options: dict[str, Any] = Field({}, description="of the dataset of reasoning-gym, under its names")
    files: tuple[str, ...] = Field((), description="JSONL or Parquet files of problems: math, code, text")
    prompt_column: str = Field("prompt", description="of the files")
    answer_column: str = Field("answer", description="of the files: an answer, tests or references")
    held_out: float = Field(0.1, gt=0.0, lt=1.0, description="share of the problems that are never trained on")
    truncated: Literal["zero", "scored"] = Field("zero", description="what a response cut at its limit earns")
    turns: int = Field(7, ge=1, description="guesses: guess")
    largest: int = Field(99, ge=2, description="hidden numbers go from 1 to it: guess")
    seconds: float = Field(5.0, gt=0.0, description="of one unit test, or of the verifier of one response")
    memory_mib: int = Field(1024, ge=64, description="of one unit test, or of the verifier")
    isolation: Isolation = Field("full", description="of programs: code")

    @model_validator(mode="after")
    def _has_problems(self) -> Self:
        if self.kind in FILES and not self.files:
            raise ValueError(f"task.kind = {self.kind} reads its problems from files; set task.files")
        if self.kind not in FILES and self.files:
            raise ValueError(f"task.kind = {self.kind} makes its own problems; drop task.files or set another kind")
        return self

    @property
    def limits(self) -> Limits:
        """What one unit test may use."""
        return Limits(seconds=self.seconds, memory_mib=self.memory_mib, isolation=self.isolation)
