"""Where results go: standard output, a file written whole, or a note on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstorder.cli.api.results import Documented


def check_target(target: str | None) -> None:
    """Refuse an output file that cannot be written, before the work is done.

    Raises:
        ConfigError: its folder does not exist or takes no file, or it is a folder.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.core.runs.files import check_place

    if target is None or target == "-":
        return
    path = Path(target)
    try:
        if path.is_dir():
            raise ConfigError(f"--json {target} is a folder; give a file")
        if not path.parent.is_dir():
            raise ConfigError(f"--json {target}: folder {path.parent} does not exist; create it first")
        if not path.exists() or path.is_file():
            check_place(path)
    except OSError as error:
        raise ConfigError(f"--json {target} cannot be written: {error.strerror}; give another file") from None


def show(result: Documented, target: str | None) -> None:
    """Print a result, and write its document where `--json` says; `-` is standard output, which then holds no more."""
    if target != "-":
        result.print()  # first, so that a file that cannot be written takes no result with it
    if target is not None:
        write_json(target, result.document)


@contextmanager
def notes_told() -> Iterator[None]:
    """An interruption says on stderr what it carries: how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupted:
        for note in getattr(interrupted, "__notes__", ()):
            print(note, file=sys.stderr)
        raise


def write_json(target: str, document: dict[str, Any]) -> None:
    """Write a JSON document whole to a file, or to standard output for `-`."""
    from firstorder.core.runs.files import to_json, write_whole

    text = to_json(document)
    if target == "-":
        sys.stdout.write(text)
    else:
        write_whole(Path(target), text)
