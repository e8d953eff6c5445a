"""A run folder: `config.toml`, `metrics.jsonl` and `receipts.jsonl` (one object a step), `quantities.json` (what their
names mean), `checkpoints/`.

A checkpoint is written whole or not at all and says which step comes next. Whatever the two logs hold beyond it is cut
off on resume, so a run that was killed at any moment goes on bit for bit.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .diagnostics import Quantity
from .errors import ConfigError, DiskError
from .loop import StepLog
from .record import to_json, write_whole
from .toml import dump

LOGS = ("metrics", "receipts")
KEPT = 2  # checkpoints: the newest, and the one before it in case the newest is damaged

Line = dict[str, Any]
"""One step of a log: `step`, and a number for each name, a list of them in an ensemble."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder.
        config: the resolved configuration, nested tables.
        resume: go on in a folder that holds the same configuration; else the folder must be new or empty.
        changeable: dotted keys that may have other values on resuming; they are written down anew.

    Raises:
        ConfigError: the folder cannot be used, with the remedy.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, resume: bool, changeable: Collection[str] = ()) -> None:
        self.path, self.config = path, config
        claim(path / "config.toml", config, resume=resume, changeable=changeable)
        try:
            (path / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise _unusable(path, error) from None

    def describe(self, quantities: Mapping[str, Quantity]) -> None:
        """Write down what the logged names mean.

        Raises:
            ConfigError: the file cannot be written.
        """
        write_whole(self.path / "quantities.json", to_json({name: asdict(q) for name, q in quantities.items()}))

    def append(self, log: StepLog) -> None:
        """Add a step to both logs, flushed to disk.

        Raises:
            DiskError: the disk is full or gone; the last checkpoint is untouched.
        """
        for name, line in zip(LOGS, lines(log), strict=True):
            try:
                with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                    file.write(to_json(line, indent=None))
            except OSError as error:
                raise _stopped(self.path, error) from None

    def history(self) -> Iterator[Line]:
        """The logged steps in order, both logs together."""
        metrics, receipts = (_read(self.path / f"{name}.jsonl") for name in LOGS)
        acted = {line["step"]: line for _, line in receipts}
        for _, line in metrics:
            yield line | acted.get(line["step"], {})

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the checkpoint from which step `step` follows; keep the newest two.

        Raises:
            DiskError: the disk is full or gone; earlier checkpoints are untouched.
        """
        target = self.path / "checkpoints" / f"step-{step:07d}.pt"
        temporary = target.with_suffix(".partial")
        content = io.BytesIO()  # torch writes to a file by itself, but does not say why it could not
        torch.save({"step": step, "state": state}, content)
        try:
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            for old in self._checkpoints()[:-KEPT]:
                old.unlink()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _stopped(self.path, error) from None

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


def claim(file: Path, config: dict[str, Any], *, resume: bool, changeable: Collection[str] = ()) -> None:
    """Make a folder that belongs to one configuration, or go back to it.

    Args:
        file: where in the folder the configuration is kept.
        config: nested tables.
        resume: the folder must hold this configuration; else it must be new or empty.
        changeable: dotted keys that may have other values on resuming; they are written down anew.

    Raises:
        ConfigError: the folder cannot be used, with the remedy.
    """
    path, text = file.parent, dump(config)
    check_claim(file, config, resume=resume, changeable=changeable)
    if resume:
        if changeable:
            write_whole(file, text)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from None
    write_whole(file, text)  # before anything else, so that a folder that is not empty can be resumed


def check_claim(file: Path, config: dict[str, Any], *, resume: bool, changeable: Collection[str] = ()) -> None:
    """Refuse what `claim` would refuse, before the work that comes first, and write nothing; arguments as there."""
    path = file.parent
    if resume:
        _check_same(file, dump(config), changeable)
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not an empty folder; give a new --out, or --resume to go on")


def _check_same(file: Path, text: str, changeable: Collection[str]) -> None:
    """Refuse to resume where another configuration ran, naming the first key that differs and must not."""
    path = file.parent
    if not file.is_file():
        raise ConfigError(f"{path} holds no run to resume, no {file.name}; drop --resume to start one")
    try:
        before = flat(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; mend it, or give a new --out") from None
    now = flat(tomllib.loads(text))
    for key in sorted((before.keys() | now.keys()) - set(changeable)):
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


def lines(log: StepLog) -> tuple[Line, Line]:
    """A step as it stands in the two logs."""
    metrics, receipts = (
        {"step": log.step} | {key: _plain(value) for key, value in values.items()}
        for values in (log.metrics, log.receipts)
    )
    return metrics, receipts


def _read(log: Path) -> Iterator[tuple[bytes, Line]]:
    """The whole lines of a log, as bytes and parsed; one that is only half written, or damaged, is left out."""
    for line in log.read_bytes().splitlines() if log.is_file() else []:
        try:
            entry = json.loads(line)
            entry["step"] = int(entry["step"])
        except (ValueError, TypeError, KeyError):
            continue
        yield line, entry


def _cut(log: Path, step: int) -> None:
    """Drop the lines of steps that will be run again, and those that are not whole."""
    if log.is_file():
        kept = [line.decode() + "\n" for line, entry in _read(log) if entry["step"] < step]
        write_whole(log, "".join(kept))


def _plain(value: Tensor) -> float | list[float]:
    numbers = value.double().tolist()
    return numbers[0] if isinstance(numbers, list) and len(numbers) == 1 else numbers


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot use {path}: {error.strerror}; give another --out")


def _stopped(path: Path, error: Exception) -> DiskError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return DiskError(f"cannot write to {path}: {reason}; free some space and go on with --resume")
