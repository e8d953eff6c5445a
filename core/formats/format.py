"""Format: how one framework's dump is recognised and read, and what a user may decide where a file does not say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .sample import Sample

Fill = Literal["none", "zeros", "minus-one", "arange"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user says of a dump, None where the file is left to speak for itself.

    Args:
        fill: what stands in route rows that no token has: `--fill`.
        layers: those of the model that are MoE layers, where routes hold all layers: `--layers`.
        experts: of the model: `--experts`.
        top_k: experts a token, where routes are flat: `--top-k`.
    """

    fill: Fill | None = None
    layers: tuple[int, ...] | None = None
    experts: int | None = None
    top_k: int | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Args:
        name: what `--format` takes.
        title: whose it is and what a file holds, a phrase.
        recognise: whether a file is one by its name and its first bytes; cheap, and never raises.
        read: the samples of such files in the order of their steps, streamed: no more than a chunk is held at a time,
            or the whole of one file where its container cannot be streamed. Files that belong together (ranks, a
            rollout and a train file, context-parallel slices) are joined here.
        conventions: what it is read by (alignment, fills, padding), a sentence each; an audit repeats them.

    `read` raises DataError, `FILE line N: what, got, remedy`, for what cannot be read; it never guesses.
    """

    name: str
    title: str
    recognise: Callable[[Path], bool]
    read: Callable[[Sequence[Path], Options], Iterator[Sample]]
    conventions: tuple[str, ...]
