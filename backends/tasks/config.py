"""The `[task]` section: what is to be learnt on the real engines, from which problems, and what a verifier may use."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from firstorder.core.settings.section import Place, Section, within

from .sandbox import Isolation, Limits

Kind = Literal["reasoning-gym", "sums", "math", "code", "text", "guess"]
FILES: tuple[Kind, ...] = ("math", "code", "text")  # kinds whose problems are read from files


class TaskSettings(Section):
    """The task. Its reward is in [0, 1]."""

    kind: Kind = Field("reasoning-gym", description="what is to be learnt")
    system: str | None = Field(
        None,
        description="instruction before every question: the chat template's system message, or a paragraph above it; "
        '"" for none; unset: by kind',
    )
    dataset: str = Field("basic_arithmetic", description="of `reasoning-gym`, any but `composite`")
    options: dict[str, Any] = Field(
        {},
        description="of that dataset, under its own names, as `task.options.max_terms=3`; `size` and `seed` are 10,000 "
        "and 0",
        examples=[{"max_terms": 3}],
    )
    files: tuple[Place, ...] = Field(
        (), description="JSONL or Parquet files of `math`, `code` and `text`", examples=[("problems.jsonl",)]
    )
    prompt_column: str = Field("prompt", description="the files' column of questions")
    answer_column: str = Field("answer", description="the files' column of answers, tests or references")
    held_out: float = within(
        0.1,
        "(0, 1)",
        "some problems are trained on and some are not",
        "share of the problems that are never trained on, by a hash of the question; of `sums` always one in ten",
    )
    truncated: Literal["zero", "scored"] = Field(
        "zero",
        description="a response cut at `vllm.max_tokens` earns 0 (`zero`) or is verified like any other (`scored`)",
    )
    turns: int = within(7, "[1, 10000]", "a conversation has to fit into a response", "guesses in `guess`")
    largest: int = within(
        99, "[2, 1000000000]", "there has to be something to guess", "hidden numbers of `guess` go from 1 to it"
    )
    seconds: float = within(
        5.0,
        "[0.01, 86400]",
        "a process takes that long to start",
        "of one unit test, or of the verifier of one response of `reasoning-gym` and `math`",
    )
    memory_mib: int = within(
        1024,
        "[64, 1048576]",
        "Python starts in no less, and no machine has 1 TiB for it",
        "of the same",
    )
    isolation: Isolation = Field("full", description="of programs, in `code`; `limits` does without Landlock")

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(options)  # which a verifier's process is told them in
        except TypeError as error:
            raise ValueError(f"options are numbers, texts, bools and lists of them: {error}") from None
        return options

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
