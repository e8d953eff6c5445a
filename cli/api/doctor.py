"""What is installed, what the machine has, and what will not work here, with the command that mends it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .installed import CORE, USES, Declared, Package, declared, engines_extra, packages
from .machine import Machine, machine
from .problems import Problem, problems
from .results import Documented

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

SCHEMA = "firstorder.doctor/1"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DoctorResult(Documented):
    """What there is and what will not work.

    Args:
        packages: what the package asks for, by extra.
        machine: processor, memory, GPUs and disk.
        problems: what will not work, each with its remedy.
    """

    packages: tuple[Package, ...]
    machine: Machine
    problems: tuple[Problem, ...]

    @property
    def passed(self) -> bool:
        """Whether the core works and all that is installed fits."""
        return not any(problem.fails for problem in self.problems)

    def blocks(self) -> Iterator[Table | Text]:
        """The packages, the machine, and what will not work."""
        from rich.text import Text

        yield _packages(self.packages)
        yield from (Text(line) for line in _lines(self.machine))
        for problem in self.problems:
            style = "bold red" if problem.fails else "yellow"
            yield Text(f"{problem.what}: {problem.why}; {problem.remedy}", style=style)
        if not self.problems:
            yield Text("everything works here", style="bold green")


def doctor() -> DoctorResult:
    """What is installed and what the machine has; what will not work, why, and the command that mends it.

    Versions are those of the installed metadata, held against the pins of this package. Nothing heavy is imported.
    """
    asked, here = declared(), machine()
    found = tuple(packages(asked, _extras(asked, here)))
    wrong = tuple(problems(found, here))
    document = {
        "schema": SCHEMA,
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": [asdict(each) for each in found],
        "machine": asdict(here),
        "problems": [asdict(each) for each in wrong],
        "passed": not any(each.fails for each in wrong),
    }
    return DoctorResult(document=document, packages=found, machine=here, problems=wrong)


def _extras(asked: Declared, here: Machine) -> tuple[str, ...]:
    """The core, one build of the engines, and the extras of users."""
    return (CORE, engines_extra(bool(here.gpus)), *USES) if asked.lines else ()


def _packages(found: tuple[Package, ...]) -> Table:
    from rich.table import Table

    shown = Table(box=None, header_style="bold")
    for column in ("package", "for", "installed", "wanted"):
        shown.add_column(column)
    for each in found:
        there = "-" if each.version is None else each.version if each.fits else f"[bold red]{each.version}[/]"
        shown.add_row(each.name, each.extra or "the core", there, each.wanted or "any")
    return shown


def _lines(here: Machine) -> Iterator[str]:
    yield f"python: {platform.python_version()}, {sys.executable}"
    kinds = "not known" if here.features is None else ", ".join(here.features) or "none of those that matter"
    yield f"processor: {here.system}, cores {here.cores}; {kinds}"
    yield f"memory: {here.memory / 2**30:.1f} GiB available"
    yield f"GPUs: {'; '.join(here.gpus) or 'none seen'}"
    yield f"disk: {here.disk_free / 2**30:.1f} GiB free at {here.folder}"
