"""`firstorder`: one module a command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

import typer

from firstorder import __version__
from firstorder.core.errors import FirstOrderError

from . import coldstart, measure, probe, promote, recipes, report, sweep, train, validate

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Is a token-level objective still a first-order proxy of the sequence-level reward?",
)
app.command("validate")(validate.validate)
app.command("measure")(measure.measure)
app.command("train")(train.train)
app.command("sweep")(sweep.sweep)
app.command("coldstart")(coldstart.coldstart)
app.command("probe")(probe.probe)
app.command("promote")(promote.promote)
app.command("report")(report.report)
app.command("recipes")(recipes.recipes)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


# Threads that spin while they wait make small kernels ten times slower as soon as another process wants a core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    code = run(sys.argv[1:])
    if "triton" in sys.modules:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End without taking the interpreter apart, at which the engines' extension modules print pages about leaks."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    try:
        code = app(arguments, standalone_mode=False, prog_name="firstorder")
    except FirstOrderError as error:
        return _refuse(str(error), error.code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # the command-line parser's own complaints; the class moved between releases of typer, its method did not
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        return 0 if not message else _refuse(message.replace("\n", " "))
    if code == INTERRUPTED:
        typer.echo("firstorder: interrupted", err=True)
    return code if isinstance(code, int) else 0


def _refuse(message: str, code: int = 2) -> int:
    typer.echo(f"firstorder: {message}", err=True)
    return code
