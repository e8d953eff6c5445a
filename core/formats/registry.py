"""Which format a path is of: files are told by their names and first bytes, and what is not clear is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstorder.core.errors import DataError

from .decided import decided
from .format import Format, Options
from .miles import MILES
from .nemo_rl import NEMO_RL
from .neutral import NEUTRAL
from .prime_rl import PRIME_RL, STABLE
from .sample import Sample
from .sglang import SGLANG
from .skyrl import SKYRL
from .slime import SLIME
from .verl import VERL
from .vllm import VLLM

FORMATS: Mapping[str, Format] = {
    each.name: each for each in (NEUTRAL, PRIME_RL, NEMO_RL, SLIME, MILES, SKYRL, VERL, VLLM, SGLANG)
}
MOST = 100_000  # files of a folder that are looked at
NAMED = 3  # files that an error names


class NoDumpError(DataError):
    """There is no file of a known format."""


@dataclass(frozen=True, kw_only=True)
class Dump:
    """Files of one format.

    Args:
        format: whose.
        files: in the order of their names.
        skipped: files beside them that are of no format.
        options: what the user has decided.
    """

    format: Format
    files: tuple[Path, ...]
    skipped: int
    options: Options

    def samples(self) -> Iterator[Sample]:
        """The responses in the order of their steps, streamed; may be asked for again.

        Raises:
            DataError: a file cannot be read, or changed while it was; it is named, with the row.
        """
        before = {path: _state(path) for path in self.files}
        for sample in self.format.read(self.files, self.options):
            yield decided(sample, self.options)
        for path, state in before.items():
            if _state(path) != state:
                raise DataError(f"{path} changed while it was read; wait until it is written, or use --follow")


def open_dump(paths: Sequence[Path], format: str | None = None, options: Options | None = None) -> Dump:
    """The dump that files and folders hold.

    Args:
        paths: files, or folders that are searched for files.
        format: its name, where the user says; else every file is asked.
        options: what else the user decides.

    Raises:
        NoDumpError: there is nothing to read.
        DataError: the files are of several formats, which are listed.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
    files = [file for path in paths for file in _files(path)]
    given = {path for path in paths if not path.is_dir()}
    wanted = FORMATS.values() if format is None else (FORMATS[format],)
    by_format = {each.name: [file for file in files if each.recognise(file)] for each in wanted}
    found = {name: tuple(dict.fromkeys(theirs)) for name, theirs in by_format.items() if theirs}
    if not found:
        raise NoDumpError(_nothing(paths, files, format))
    if len(found) > 1:
        named = "; ".join(f"{name}: {len(theirs)} as {theirs[0]}" for name, theirs in found.items())
        raise DataError(f"the files are of several formats ({named}); say which with --format")
    ((name, theirs),) = found.items()
    for path in given - set(theirs):
        raise DataError(f"{path} is no file of the format {name}; formats: {', '.join(FORMATS)}")
    return Dump(format=FORMATS[name], files=theirs, skipped=len(set(files)) - len(theirs), options=options or Options())


def _nothing(paths: Sequence[Path], files: Sequence[Path], format: str | None) -> str:
    where = ", ".join(map(str, paths[:NAMED]))
    if not files:
        return f"{where} holds no files; give a dump, or the folder that it is in"
    names = ", ".join(path.name for path in files[:NAMED])
    what = f"the format {format}" if format else f"a known format ({', '.join(FORMATS)})"
    return f"{where}: no file is of {what}; there are {len(files)}, such as {names}"


def _files(path: Path) -> Iterator[Path]:
    """The regular files of a path, without following links to folders."""
    try:
        kind = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give a dump, or the folder that it is in") from None
    if stat.S_ISREG(kind.st_mode):
        yield path
        return
    if not stat.S_ISDIR(kind.st_mode):
        raise DataError(f"{path} is neither a file nor a folder; give a dump, or the folder that it is in")
    count = 0
    for here, folders, names in os.walk(path, onerror=_unreadable):
        folders.sort()
        for name in sorted(names):
            file = Path(here, name)
            if not name.startswith(".") and name != STABLE and file.is_file():
                count += 1
                if count > MOST:
                    raise DataError(f"{path} holds more than {MOST:,} files; give the folder of the dump itself")
                yield file


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}; give a folder that can be")


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; was it removed?") from None
    return found.st_size, found.st_mtime_ns
