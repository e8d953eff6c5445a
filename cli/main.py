"""`firstorder`: one module a command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

import typer

from firstorder import __version__
from firstorder.core.errors import ConfigError, FirstOrderError

from .commands import (
    audit,
    coldstart,
    conformance,
    doctor,
    explore,
    keys,
    measure,
    probe,
    promote,
    recipes,
    recommend,
    report,
    resume,
    study,
    sweep,
    train,
    validate,
)
from .complete import bash_words
from .crash import INTERRUPTED, guarded, is_out_of_memory, tell
from .examples import epilog
from .pages import guided

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which takes [vllm] in a help text for a style and leaves it out
    help="Is a token-level objective still a first-order proxy of the sequence-level reward?",
)
app.command("validate")(validate.validate)
app.command("measure")(measure.measure)
app.command("train")(train.train)
app.command("resume")(resume.resume)
app.command("sweep")(sweep.sweep)
app.command("coldstart")(coldstart.coldstart)
app.command("probe")(probe.probe)
app.command("conformance")(conformance.conformance)
app.command("study")(study.study)
app.command("promote")(promote.promote)
app.command("recommend")(recommend.recommend)
app.command("explore")(explore.explore)
app.command("report")(report.report)
app.command("audit")(audit.audit)
app.command("recipes")(recipes.recipes)
app.command("doctor")(doctor.doctor)
app.command("keys")(keys.keys)
for each in app.registered_commands:
    each.epilog = epilog(each.name or "")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2, a fault of ours one and 70."""
    code = guarded(run, sys.argv[1:])
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
    """Run a command and return its exit code: 0 done, 1 a check failed, 2 bad input, 130 interrupted.

    An exception that has no line of its own is raised as it is; `main` gives it one.
    """
    try:
        check_text(arguments)
        with bash_words():
            code = app(arguments, standalone_mode=False, prog_name="firstorder")
    except FirstOrderError as error:
        return _refuse(guided(str(error)), error.code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:
        if error.filename is None:  # not of a file: of standard output, for which `main` answers
            raise
        return _refuse(f"cannot use {error.filename}: {error.strerror}; give another file or folder")
    except Exception as error:
        if is_out_of_memory(error):
            return _refuse("memory ended; lower the sizes of [sim], [torchtitan] or [schedule], or free some")
        # the command-line parser's own complaints; the class moved between releases of typer, its method did not
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        return 0 if not message else _refuse(message.replace("\n", " "))
    if code == INTERRUPTED:
        tell("interrupted")
    return code if isinstance(code, int) else 0


def check_text(arguments: list[str]) -> None:
    """Refuse arguments that no file name and no setting can be.

    Raises:
        ConfigError: one holds a NUL, or is not UTF-8.
    """
    for place, argument in enumerate(arguments, start=1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"argument {place} is not valid UTF-8: {argument!r}; rename the file") from None
        if "\0" in argument:
            raise ConfigError(f"argument {place} holds a NUL character: {argument!r}; leave it out")


def _refuse(message: str, code: int = 2) -> int:
    tell(message)
    return code
