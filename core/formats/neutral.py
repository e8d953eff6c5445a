"""The neutral form: Parquet, a row a response, a file a step.

| column | type | what |
|---|---|---|
| `step`, `group` | int64 | see `Sample` |
| `reward` | double | |
| `tokens` | list of int64 | all tokens, prompt included |
| `mask` | list of bool | |
| `logp_mu`, `logp_old`, `entropy`, `advantage` | list of double | nats; NaN where there is no number |
| `version` | list of int64 | |
| `routes`, `routes_old` | binary | int16, little-endian, `[L, M, K]` in C order; M and K are in the metadata |

Columns that a dump does not hold are not in the file. The schema's metadata holds `firstorder.dump`, a JSON object with
`version` and what is known of the run: `layers`, `top_k`, `experts`, `replay`, `precision`, `minibatches`; and
`digest`, the SHA-256 of the rows, which a file that others write may leave out: Parquet's checksums cover no headers.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from firstorder.core.errors import ConfigError, DataError
from firstorder.core.runs.files import write_whole

from .format import Format, Options
from .sample import PER_TOKEN, ROUTED, Sample
from .trial import survived

KEY = b"firstorder.dump"
VERSION = 1
SUFFIX = ".parquet"
ROWS = 64  # responses that are held at once while a file is read
MOST = 1 << 31  # bytes of a row group, decoded, and values of a column of it: 2 GiB
SCALARS = {"step": "int64", "group": "int64", "reward": "double"}
LISTS = {"tokens": "int64", "mask": "bool", "version": "int64"}  # the others hold doubles
REQUIRED = ("step", "tokens", "mask")


class Run(BaseModel):
    """What a file says of its run, None where it does not."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int = VERSION
    layers: int | None = None
    top_k: int | None = None
    experts: int | None = None
    replay: str | None = None
    precision: str | None = None
    minibatches: int | None = None
    digest: str | None = None


def check() -> None:
    """Refuse where pyarrow is not installed."""
    _pyarrow()


def write(path: Path, samples: Iterable[Sample], run: Run | None = None) -> None:
    """Write samples to a file, whole or not at all.

    Args:
        path: the file.
        samples: which all have the same columns.
        run: what is known of it; the sizes of the routes are put in.

    Raises:
        ConfigError: pyarrow is not installed, or the file cannot be written.
        DataError: there are no samples, or their columns differ.
    """
    arrow, parquet = _pyarrow()
    listed = list(samples)
    if not listed:
        raise DataError(f"{path}: there are no responses to write")
    names = _columns(listed[0])
    for sample in listed:
        if _columns(sample) != names:
            raise DataError(f"{path}: the responses of a file must have the same columns; {sample.source} differs")
    shapes = {tuple(x.shape[1:]) for s in listed for name in ROUTED if (x := getattr(s, name)) is not None}
    if len(shapes) > 1:
        raise DataError(f"{path}: the routes of a file must be of one model, got (layers, experts a token) {shapes}")
    sizes = dict(zip(("layers", "top_k"), *shapes, strict=False)) if shapes else {}
    digest = hashlib.sha256()
    for sample in listed:
        _add(digest, sample)
    about = (run or Run()).model_copy(update=sizes | {"digest": digest.hexdigest()})
    types = _types(arrow)
    table = arrow.table(
        {name: arrow.array([_plain(name, getattr(s, name)) for s in listed], types[name]) for name in names}
    )
    table = table.replace_schema_metadata({KEY: about.model_dump_json(exclude_none=True)})
    held = io.BytesIO()
    parquet.write_table(table, held, compression="zstd", row_group_size=ROWS, write_page_checksum=True)
    write_whole(path, held.getvalue())


def read(paths: Sequence[Path], options: Options) -> Iterator[Sample]:
    """The samples of files, in the order of the files' first steps; see `Format.read`."""
    check()
    survived(paths)
    for path in sorted(paths, key=lambda each: (_first_step(each), str(each))):
        yield from _samples(path)


def about(path: Path) -> Run:
    """What a file says of its run.

    Raises:
        DataError: it is not of this form, or of a newer version.
    """
    check()
    survived([path])
    return _about(path, _schema(path, _opened(path)).metadata or {})


def _samples(path: Path) -> Iterator[Sample]:
    file = _opened(path)
    run = _about(path, _schema(path, file).metadata or {})
    names = _checked(path, file)
    row, digest = 0, hashlib.sha256()
    try:
        for batch in file.iter_batches(batch_size=ROWS):
            columns = {name: batch.column(name) for name in names}
            for place in range(batch.num_rows):
                row += 1
                sample = _sample(f"{path} row {row}", {name: column[place] for name, column in columns.items()}, run)
                _add(digest, sample)
                yield sample
    except _errors() as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} row {row + 1}: cannot be read: {_line(error)}; write the dump anew") from None
    if run.digest not in (None, digest.hexdigest()):
        raise DataError(f"{path} is damaged: its rows are not those that were written; write the dump anew")


def _add(digest: Any, sample: Sample) -> None:
    """The next row of a digest: the bytes of its columns, in their order."""
    for name in _columns(sample):
        value = getattr(sample, name)
        content = value.contiguous().numpy().data if isinstance(value, Tensor) else repr(value).encode()
        digest.update(name.encode())
        digest.update(content)


def _first_step(path: Path) -> int:
    file = _opened(path)
    _checked(path, file)
    try:
        column = file.read_row_group(0, columns=["step"]).column("step") if file.metadata.num_row_groups else []
        return int(column[0].as_py() or 0) if len(column) else 0
    except _errors() as error:
        raise DataError(f"{path} row 1: cannot be read: {_line(error)}; write the dump anew") from None


def _sample(source: str, cells: dict[str, Any], run: Run) -> Sample:
    """One row; no cell may be null, and none but a log-prob may be NaN."""
    for name, cell in cells.items():
        if not cell.is_valid:
            raise DataError(f"{source}: `{name}` is null; leave a column out that the dump does not hold")
    fields: dict[str, Any] = {name: cells[name].as_py() for name in SCALARS if name in cells}
    length = len(cells["tokens"].values)
    if not length:
        raise DataError(f"{source}: `tokens` is empty; a response needs at least one")
    for name, cell in cells.items():
        if name in ROUTED:
            fields[name] = _routes(source, name, cell.as_buffer(), length, run)
        elif name not in SCALARS:
            fields[name] = _list(source, name, cell.values)
    if fields.get("reward", 0.0) != fields.get("reward", 0.0):
        raise DataError(f"{source}: `reward` is NaN; check the verifier of the task")
    return Sample(source=source, **fields)


def _list(source: str, name: str, values: Any) -> Tensor:
    if values.null_count:
        raise DataError(f"{source}: `{name}` holds {values.null_count} nulls; a missing log-prob is NaN")
    return torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())


def _routes(source: str, name: str, buffer: Any, length: int, run: Run) -> Tensor:
    shape = (length, run.layers or 0, run.top_k or 0)
    if buffer.size != 2 * shape[0] * shape[1] * shape[2] or not buffer.size:
        raise DataError(
            f"{source}: `{name}` must hold tokens x layers x experts a token = {' x '.join(map(str, shape))} ids of 2 "
            f"bytes, got {buffer.size} bytes"
        )
    return torch.frombuffer(bytearray(buffer), dtype=torch.int16).reshape(shape)


def _opened(path: Path) -> Any:
    """A Parquet file whose row groups are of a size that can be held."""
    _, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
    except _errors() as error:
        raise DataError(f"{path} is no whole Parquet file: {_line(error)}; write the dump anew") from None
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        largest = max([group.total_byte_size, *(max(c.num_values, c.total_uncompressed_size) for c in columns)])
        if largest > MOST:
            raise DataError(
                f"{path}: row group {number} claims {largest / 2**30:.3g} GiB, and {MOST / 2**30:g} GiB is held at "
                "most; write smaller row groups"
            )
    return file


def _schema(path: Path, file: Any) -> Any:
    try:
        return file.schema_arrow
    except _errors() as error:
        raise DataError(f"{path} is no whole Parquet file: {_line(error)}; write the dump anew") from None


def _about(path: Path, metadata: dict[bytes, bytes]) -> Run:
    try:
        run = Run.model_validate_json(metadata.get(KEY, b""))
    except ValidationError:
        raise DataError(f"{path}: its metadata has no valid `{KEY.decode()}`; write it with `train --dump`") from None
    if run.version != VERSION:
        raise DataError(f"{path} is of version {run.version}, and this program reads {VERSION}; update firstorder")
    return run


def _checked(path: Path, file: Any) -> tuple[str, ...]:
    """The columns of a file, whose types are as they must be."""
    arrow, _ = _pyarrow()
    schema, types = _schema(path, file), _types(arrow)
    for name in REQUIRED:
        if name not in schema.names:
            raise DataError(f"{path} lacks the column `{name}`; write it with `train --dump`")
    for field in schema:
        if field.name not in types:
            raise DataError(f"{path} has an unknown column `{field.name}`; known: {', '.join(types)}")
        if field.type != types[field.name]:
            raise DataError(f"{path}: the column `{field.name}` must be {types[field.name]}, got {field.type}")
    return tuple(schema.names)


def _types(arrow: Any) -> dict[str, Any]:
    lists = {name: LISTS.get(name, "double") for name in ("tokens", "mask", *PER_TOKEN)}
    named = {"int64": arrow.int64(), "double": arrow.float64(), "bool": arrow.bool_()}
    return (
        {name: named[kind] for name, kind in SCALARS.items()}
        | {name: arrow.list_(named[kind]) for name, kind in lists.items()}
        | {name: arrow.binary() for name in ROUTED}
    )


def _columns(sample: Sample) -> tuple[str, ...]:
    every = ("step", "group", "reward", "tokens", "mask", *PER_TOKEN, *ROUTED)
    return tuple(name for name in every if getattr(sample, name) is not None)


def _plain(name: str, value: Any) -> Any:
    if name in ROUTED:
        return value.to(torch.int16).contiguous().numpy().tobytes()
    return value.numpy() if isinstance(value, Tensor) else value


def _pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet, which come with an extra."""
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError("the neutral form needs pyarrow; pip install 'firstorder[audit]'") from None


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises."""
    arrow, _ = _pyarrow()
    return arrow.ArrowException, OSError, ValueError, MemoryError, OverflowError


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _recognise(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.suffix == SUFFIX and file.read(4) == b"PAR1"
    except OSError:
        return False


NEUTRAL = Format(
    name="neutral",
    title="firstorder's Parquet files, a row a response",
    recognise=_recognise,
    read=read,
    conventions=(
        "position t of every list is token t, and its log-prob is that of token t given those before it",
        "route row t is the routing of token t; the last row, and a row that is missing, is -1",
    ),
)
