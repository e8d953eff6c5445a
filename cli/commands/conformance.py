"""`firstorder conformance`: golden vectors, and how far other programs are from them."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path

import typer

from firstorder.cli import output
from firstorder.cli.api import conformance as api


class Action(StrEnum):
    """What to do with the vectors."""

    export = "export"
    check = "check"


def conformance(
    action: Action = typer.Argument(help="export: write the vectors; check: hold FILE against them."),
    file: str | None = typer.Argument(None, metavar="FILE", help="Of check: the answers of your program."),
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
) -> int:
    """Golden vectors: small batches with what every method makes of them, for any program to test itself."""
    output.check_target(json)
    if action is Action.export:
        return _export(file, json)
    return _check(file, json)


def _export(file: str | None, json: str | None) -> int:
    from firstorder.core.conformance.shipped import source
    from firstorder.core.errors import ConfigError
    from firstorder.core.runs.files import write_whole

    if file is not None:
        raise ConfigError(f"export reads no file, got {file}; write the vectors with --json {file}")
    if json == "-":
        sys.stdout.write(source())
        return 0
    api.conformance_vectors().print()
    if json is not None:
        write_whole(Path(json), source())
    return 0


def _check(file: str | None, json: str | None) -> int:
    from firstorder.core.errors import ConfigError

    if file is None:
        raise ConfigError("check needs the file with your answers; give `firstorder conformance check FILE`")
    result = api.conformance(file)
    output.show(result, json)
    return 0 if result.passed else 1
