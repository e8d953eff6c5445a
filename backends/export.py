"""The trained model as a folder that transformers and vLLM load, written when a run ends: whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from firstorder.core.errors import DiskError, FirstOrderError
from firstorder.core.runs.files import to_json, write_whole

from .folder import copy_rest, read_config, write_weights
from .ranks import broadcast_from_rank0, is_rank0

if TYPE_CHECKING:
    from .torchtitan.trainer import Trainer

MODEL = "model"  # in the run folder


def export(trainer: Trainer, run: Path) -> None:
    """Write the trainer's weights, in the dtype of its forward pass, with the config and tokenizer that it was given.

    Args:
        trainer: of this rank; every rank takes part.
        run: the run folder.

    Raises:
        DiskError: the folder cannot be written; what was there before is untouched.
    """
    source, dtype = Path(trainer.settings.model), trainer.settings.dtype
    weights, failed = trainer.weights(), None
    if is_rank0():
        try:
            _write(run, source, dtype, ((name, w.to(getattr(torch, dtype))) for name, w in weights))
        except (OSError, FirstOrderError) as error:
            failed = error
    for _ in weights:  # gathered by all ranks, written by the first
        pass
    broadcast_from_rank0(lambda: _named(failed, run))


def _write(run: Path, source: Path, dtype: str, weights: Iterable[tuple[str, Tensor]]) -> None:
    partial, whole = run / f".{MODEL}.partial", run / MODEL
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was interrupted
    partial.mkdir()
    copy_rest(source, partial)
    write_whole(partial / "config.json", to_json(read_config(source) | {"torch_dtype": dtype, "dtype": dtype}))
    write_weights(partial, weights)
    for file in partial.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    shutil.rmtree(whole, ignore_errors=True)
    partial.rename(whole)


def _named(error: Exception | None, run: Path) -> None:
    if isinstance(error, FirstOrderError):
        raise error
    if error is not None:
        raise DiskError(f"cannot write {run / MODEL}: {error}; free some space and go on with --resume")
