"""Checkpoints with the checksum of every file that they are made of.

`step-0000020.pt` says that step 20 follows and what it needs; `step-0000020.sha256`, in the format of `sha256sum -c`,
holds the SHA-256 of it and of every other file of the checkpoint, such as the shards of a distributed one. The sums are
written first and the checkpoint appears last, whole or not at all: where a checkpoint stands, its sums stand.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import DataError

KEPT = 2  # checkpoints: the newest, and the one before it in case the newest is damaged
READERS = 8  # files hashed at once; hashing and reading both leave the interpreter's lock

log = logging.getLogger("firstorder")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The step that follows, and what the backend needs to go on."""

    step: int
    state: dict[str, Any]


class DamagedError(DataError):
    """A checkpoint is not what was written."""


def digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; raises `OSError`."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def paths(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest last."""
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{7,}", path.stem))


def write(folder: Path, step: int, state: dict[str, Any], parts: Mapping[str, str]) -> None:
    """Write the checkpoint from which step `step` follows, and keep the newest `KEPT`.

    Args:
        folder: of the checkpoints.
        step: the step that follows.
        state: what `torch.load` reads with `weights_only`.
        parts: the SHA-256 of every other file of this checkpoint, by its path in `folder`.

    Raises:
        OSError: the disk is full or gone; earlier checkpoints are untouched.
    """
    target = folder / f"step-{step:07d}.pt"
    content = io.BytesIO()  # torch writes to a file by itself, but does not say why it could not
    torch.save({"step": step, "state": state}, content)
    sums = {target.name: hashlib.sha256(content.getbuffer()).hexdigest(), **parts}
    text = "".join(f"{checksum}  {name}\n" for name, checksum in sums.items())
    try:
        _replace(_sums(target), text.encode())
        _replace(target, content.getbuffer())
    except OSError:
        if not target.exists():
            _sums(target).unlink(missing_ok=True)
        raise
    for old in paths(folder)[:-KEPT]:
        old.unlink()
        _sums(old).unlink(missing_ok=True)


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is what was written; None where none was ever written.

    One that is damaged is named in a warning, and set aside as soon as an older whole one is found.

    Raises:
        DataError: there are checkpoints, and none is whole.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(paths(folder)):
        try:
            checkpoint = read(path)
        except DamagedError as error:
            damaged[path] = str(error)
            continue
        for aside, reason in damaged.items():
            log.warning("%s; resuming from step %d, with %s set aside", reason, checkpoint.step, aside.name)
            aside.rename(aside.with_suffix(".damaged"))
        return checkpoint
    if damaged:
        raise DataError(
            f"every checkpoint is damaged: {'; '.join(damaged.values())}; restore one from a copy, or start again in a "
            "new --out"
        )
    return None


def read(path: Path) -> Checkpoint:
    """A checkpoint, once all its files are seen to be those that were written.

    Raises:
        DamagedError: one of them is not, which is named.
    """
    listed = _listed_sums(path)
    files = [path.parent / name for name in listed]
    with ThreadPoolExecutor(READERS) as pool:
        digests = list(pool.map(_digest_or_none, files))
    for file, actual, expected in zip(files, digests, listed.values(), strict=True):
        if actual != expected:
            raise DamagedError(f"{file} {'is damaged' if actual else 'cannot be read'}")
    try:
        checkpoint = torch.load(path, weights_only=True)
    except Exception as error:  # whatever the unpickler of a torch release raises
        raise DamagedError(f"{path} does not load: {str(error).splitlines()[0]}") from None
    if not isinstance(checkpoint, dict) or checkpoint.get("step") != int(path.stem.removeprefix("step-")):
        raise DamagedError(f"{path} does not hold the step that its name says")
    if not isinstance(checkpoint.get("state"), dict) or not checkpoint["state"]:
        raise DamagedError(f"{path} holds no state to resume from")
    return Checkpoint(step=checkpoint["step"], state=checkpoint["state"])


def check_like(loaded: Any, expected: Any, name: str = "state") -> None:
    """Refuse a state that is not made as the one that a backend would write.

    Args:
        loaded: what a checkpoint holds.
        expected: of the backend before it goes on; tensors must agree in shape and dtype, tables in their keys.
        name: of what is compared.

    Raises:
        DataError: naming the first part that differs.
    """
    if isinstance(expected, Mapping) and isinstance(loaded, Mapping):
        for key in [*expected, *loaded]:
            if key not in loaded or key not in expected:
                raise DataError(_unlike(f"{name}.{key}", "missing" if key in expected else "unknown"))
            check_like(loaded[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, Tensor) and isinstance(loaded, Tensor):
        for actual, right in ((loaded.shape, expected.shape), (loaded.dtype, expected.dtype)):
            if actual != right:
                raise DataError(_unlike(name, f"{_short(actual)} where {_short(right)} is wanted"))
    elif type(loaded) is not type(expected):
        raise DataError(_unlike(name, f"a {type(loaded).__name__} where a {type(expected).__name__} is wanted"))


def _unlike(name: str, what: str) -> str:
    return f"the checkpoint does not fit this run, {name} is {what}; start again in a new --out"


def _short(what: Any) -> str:
    return str(list(what)) if isinstance(what, torch.Size) else str(what)


def _listed_sums(path: Path) -> dict[str, str]:
    """The sums of a checkpoint, its own first."""
    sums = _sums(path)
    try:
        pairs = [line.split("  ", 1) for line in sums.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise DamagedError(f"{sums}, the checksums of {path.name}, cannot be read") from None
    if not all(len(pair) == 2 for pair in pairs) or path.name not in (name for _, name in pairs):
        raise DamagedError(f"{sums}, the checksums of {path.name}, is damaged")
    return {name: checksum for checksum, name in pairs}


def _digest_or_none(file: Path) -> str | None:
    try:
        return digest(file)
    except OSError:
        return None


def _sums(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _replace(target: Path, content: bytes | memoryview) -> None:
    temporary = target.with_suffix(".partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
