"""`firstorder conformance`: golden vectors, and how far other programs are from them."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path

import typer

from firstorder.cli import output
from firstorder.cli.api import conformance as api
from firstorder.cli.progress import shown


class Action(StrEnum):
    """What to do with the vectors."""

    export = "export"
    check = "check"
    peers = "peers"


def conformance(
    action: Action = typer.Argument(
        help="export: write the vectors; check: hold FILE against them; peers: call other frameworks on them."
    ),
    file: str | None = typer.Argument(None, metavar="FILE", help="Of check: the answers of your program."),
    python: str | None = typer.Option(
        None, "--python", metavar="FILE", help="Of peers: a Python that has the frameworks, in place of a new one."
    ),
    env: str | None = typer.Option(
        None,
        "--env",
        metavar="DIR",
        help="Of peers: where to install them, about 2 GB; in the user's cache unless given.",
    ),
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
) -> int:
    """Golden vectors: small batches with what every method makes of them, for any program to test itself."""
    output.check_target(json)
    _check_read(action, file=file, python=python, env=env)
    if action is Action.export:
        return _export(json)
    if action is Action.peers:
        return _peers(python, env, json)
    return _check(str(file), json)


READ = {Action.export: (), Action.check: ("file",), Action.peers: ("python", "env")}
"""Which arguments an action reads."""


def _check_read(action: Action, **given: str | None) -> None:
    """Refuse what the action would not read, and a check without a file."""
    from firstorder.core.errors import ConfigError

    for name, value in given.items():
        if value is not None and name not in READ[action]:
            what = "a file" if name == "file" else f"--{name}"
            raise ConfigError(
                f"`firstorder conformance {action.value}` does not read {what}, got {value}; leave it out"
            )
    if action is Action.check and given["file"] is None:
        raise ConfigError("check needs the file with your answers; give `firstorder conformance check FILE`")


def _export(json: str | None) -> int:
    from firstorder.core.conformance.shipped import source
    from firstorder.core.runs.files import write_whole

    if json == "-":
        sys.stdout.write(source())
        return 0
    api.conformance_vectors().print()
    if json is not None:
        write_whole(Path(json), source())
    return 0


def _check(file: str, json: str | None) -> int:
    result = api.conformance(file)
    output.show(result, json)
    return 0 if result.passed else 1


def _peers(python: str | None, env: str | None, json: str | None) -> int:
    from firstorder.cli.api.peers import conformance_peers

    with shown("peers"):
        result = conformance_peers(python=python, env=env)
    output.show(result, json)
    return 0 if result.passed else 1
