"""Where results go: a file written whole, or standard output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


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


def write_json(target: str, document: dict[str, Any]) -> None:
    """Write a JSON document whole to a file, or to standard output for `-`."""
    from firstorder.core.runs.files import to_json, write_whole

    text = to_json(document)
    if target == "-":
        sys.stdout.write(text)
    else:
        write_whole(Path(target), text)
