"""A run folder: `config.toml`, `metrics.jsonl` and `receipts.jsonl` (one object a step), `checkpoints/`.

A checkpoint is written whole or not at all and says which step comes next. Whatever the two logs hold beyond it is cut
off on resume, so a run that was killed at any moment goes on bit for bit.
"""

from __future__ import annotations

import json
import os
import pickle
import tomllib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError, DiskError
from .loop import StepLog
from .record import to_json, write_whole
from .toml import dump

LOGS = ("metrics", "receipts")
KEPT = 2  # checkpoints: the newest, and the one before it in case the newest is damaged


class RunFolder:
    """The files of one run.

    Args:
        path: the folder.
        config: the resolved configuration, nested tables.
        resume: go on in a folder that holds the same configuration; else the folder must be new or empty.

    Raises:
        ConfigError: the folder cannot be used, with the remedy.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        claim(path / "config.toml", config, resume=resume)
        try:
            (path / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise _unusable(path, error) from None

    def append(self, log: StepLog) -> None:
        """Add a step to both logs, flushed to disk.

        Raises:
            DiskError: the disk is full or gone; the last checkpoint is untouched.
        """
        for name, values in zip(LOGS, (log.metrics, log.receipts), strict=True):
            plain = {"step": log.step} | {key: _plain(value) for key, value in values.items()}
            try:
                with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                    file.write(to_json(plain, indent=None))
            except OSError as error:
                raise _stopped(self.path, error) from None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the checkpoint from which step `step` follows; keep the newest two.

        Raises:
            DiskError: the disk is full or gone; earlier checkpoints are untouched.
        """
        target = self.path / "checkpoints" / f"step-{step:07d}.pt"
        temporary = target.with_suffix(".partial")
        try:
            with temporary.open("wb") as file:
                torch.save({"step": step, "state": state}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise _stopped(self.path, error) from None
        for old in self._checkpoints()[:-KEPT]:
            old.unlink()

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that loads, with both logs cut back to it; None if there is none yet."""
        found = None
        for path in reversed(self._checkpoints()):
            try:
                found = torch.load(path, weights_only=True)
                break
            except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
                continue
        step = 0 if found is None else int(found["step"])
        for name in LOGS:
            _cut(self.path / f"{name}.jsonl", step)
        return None if found is None else (step, found["state"])

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("step-*.pt"))


def claim(file: Path, config: dict[str, Any], *, resume: bool) -> None:
    """Make a folder that belongs to one configuration, or go back to it.

    Args:
        file: where in the folder the configuration is kept.
        config: nested tables.
        resume: the folder must hold this configuration; else it must be new or empty.

    Raises:
        ConfigError: the folder cannot be used, with the remedy.
    """
    path, text = file.parent, dump(config)
    if resume:
        _check_same(file, text)
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not an empty folder; give a new --out, or --resume to go on")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from None
    write_whole(file, text)  # before anything else, so that a folder that is not empty can be resumed


def _check_same(file: Path, text: str) -> None:
    """Refuse to resume where another configuration ran, naming the first key that differs."""
    path = file.parent
    if not file.is_file():
        raise ConfigError(f"{path} holds no run to resume, no {file.name}; drop --resume to start one")
    before, now = flat(tomllib.loads(file.read_text(encoding="utf-8"))), flat(tomllib.loads(text))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{path} was run with {key} = {before.get(key)!r}, got {now.get(key)!r}; "
                "resume with the same recipe and settings, or give a new --out"
            )


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _cut(log: Path, step: int) -> None:
    """Drop the lines of steps that will be run again, and a last line that was only half written."""
    if not log.is_file():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
        except ValueError:
            break
    write_whole(log, "".join(kept))


def _plain(value: Tensor) -> float | list[float]:
    numbers = value.double().tolist()
    return numbers[0] if isinstance(numbers, list) and len(numbers) == 1 else numbers


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot use {path}: {error.strerror}; give another --out")


def _stopped(path: Path, error: Exception) -> DiskError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return DiskError(f"cannot write to {path}: {reason}; free some space and go on with --resume")
