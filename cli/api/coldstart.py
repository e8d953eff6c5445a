"""A small MoE that can learn, made from nothing."""

from __future__ import annotations

import os
from pathlib import Path


def coldstart(style: str, *, out: str | os.PathLike[str], steps: int | None = None, seed: int = 0) -> float:
    """Build a small Qwen3-MoE with its tokenizer and train it on generated demonstrations of a small task.

    Args:
        style: how demonstrations are written: direct, reversed or steps.
        out: a new or empty folder for the model.
        steps: supervised steps; by style unless given.
        seed: of the initial weights and of the demonstrations.

    Returns:
        The last loss, nats/token.

    Raises:
        ConfigError: an unknown style, a folder that is not empty, or the engines are not installed.
    """
    from firstorder.backends.coldstart import coldstart as train
    from firstorder.core.progress import tell

    def done(step: int, total: int, loss: float) -> None:
        tell("steps", step, total, f"loss {loss:.4g} nats/token")

    return train(style, Path(out), steps, seed, done)
