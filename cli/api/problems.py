"""What will not work with what is installed on a machine, why, and the command that mends it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .installed import CORE, ENGINE_PACKAGES, ENGINES, PACKAGE, USES, Package, version
from .machine import Machine

ENGINES_BYTES = 4_300_000_000  # that the CPU build of the engines takes on disk
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")  # of torch, built for CUDA on PyPI
CPU_BUILD = "+cpu"  # how the version of a CPU build ends
CHROMIUM = ("chromium", "chromedriver")
INSTALL_CHROMIUM = "apt-get install -y --no-install-recommends chromium chromium-driver"
MAKE = "`make engines` in a clone"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that will not work.

    Args:
        what: will not work.
        why: it will not.
        remedy: the command that mends it.
        fails: whether the core does not work, or something installed does not fit.
    """

    what: str
    why: str
    remedy: str
    fails: bool = False


def problems(found: Sequence[Package], here: Machine) -> Iterator[Problem]:
    """What will not work, the worst first."""
    if not found:
        yield Problem(
            what="versions",
            why=f"{PACKAGE} is read from a folder and not installed, so what it asks for is not known",
            remedy="`pip install .` in the clone",
        )
    yield from _core([each for each in found if each.extra == CORE])
    yield from _engines([each for each in found if each.extra in ENGINES], here)
    for extra, use in USES.items():
        yield from _extra(extra, use, [each for each in found if each.extra == extra])
    if not here.writable:
        yield Problem(what="runs", why=f"{here.folder} takes none", remedy="`cd` to a folder of yours, or --out DIR")
    yield from _browser()


def _core(needed: Sequence[Package]) -> Iterator[Problem]:
    """A package without which, or with another version of which, nothing is sure to work."""
    if wrong := _wrong(needed):
        yield Problem(what="everything", why=_named(wrong), remedy=f"`pip install {_quoted(wrong)}`", fails=True)


def _engines(needed: Sequence[Package], here: Machine) -> Iterator[Problem]:
    """Engines that are missing, of other versions, or of a build that cannot use this machine."""
    what = "the real engines (`train --backend torchtitan`, `probe`, `promote`)"
    in_use = any(each.version for each in needed if each.name in ENGINE_PACKAGES)
    if needed and not in_use:
        room = "" if here.disk_free > ENGINES_BYTES else f", and {here.disk_free / 1e9:.1f} GB are free"
        remedy = f"`pip install '{PACKAGE}[{needed[0].extra}]'`"
        if needed[0].extra == "engines-cpu":
            remedy = f"{MAKE} (4.3 GB{room})"
        yield Problem(what=what, why=_named(_wrong(needed)), remedy=remedy)
        return
    if wrong := _wrong(needed):
        yield Problem(what=what, why=_named(wrong), remedy=f"`pip install {_quoted(wrong)}`", fails=True)
    if in_use:
        yield from _builds(what, here)


def _builds(what: str, here: Machine) -> Iterator[Problem]:
    """Builds that do not fit each other or the machine."""
    torch_is_cpu = (version("torch") or "").endswith(CPU_BUILD)
    for_cuda = [name for name in COMPANIONS if (found := version(name)) and not found.endswith(CPU_BUILD)]
    if torch_is_cpu and for_cuda:
        yield Problem(
            what=what,
            why=f"{', '.join(for_cuda)} built for CUDA beside a CPU build of torch break transformers",
            remedy=f"`pip uninstall -y {' '.join(for_cuda)}`",
            fails=True,
        )
    if version(ENGINES["engines-cpu"]) and here.features is not None and "avx2" not in here.features:
        yield Problem(
            what=what,
            why="the kernels of vLLM for CPUs need AVX2, which this processor lacks",
            remedy="another machine",
        )
    if version(ENGINES["engines-cuda"]) and not here.gpus:
        yield Problem(
            what=what,
            why="vLLM is built for CUDA, and nvidia-smi shows no GPU",
            remedy=f"{MAKE}, or a machine with a GPU",
        )
    if version(ENGINES["engines-cpu"]) and here.gpus:
        yield Problem(
            what="the GPU",
            why="vLLM is built for CPUs",
            remedy=f"`pip install '{PACKAGE}[engines-cuda]'` in an environment of its own",
        )


def _extra(extra: str, use: str, needed: Sequence[Package]) -> Iterator[Problem]:
    """A library that is missing, or that is there and does not fit."""
    if wrong := _wrong(needed):
        unfit = any(each.version for each in wrong)
        yield Problem(what=use, why=_named(wrong), remedy=f"`pip install '{PACKAGE}[{extra}]'`", fails=unfit)


def _browser() -> Iterator[Problem]:
    """A driver without its browser, where pages are to be tested."""
    absent = [name for name in CHROMIUM if shutil.which(name) is None]
    if version("selenium") and absent:
        yield Problem(
            what="`make test-browser`", why=f"{', '.join(absent)} not found on the PATH", remedy=f"`{INSTALL_CHROMIUM}`"
        )


def _wrong(needed: Sequence[Package]) -> list[Package]:
    """Packages that are not there or do not fit."""
    return [each for each in needed if not each.fits]


def _named(wrong: Sequence[Package]) -> str:
    """What is wrong with packages, in words."""
    return ", ".join(
        f"{each.name} is not installed" if each.version is None else f"{each.name} {each.version} is not {each.wanted}"
        for each in wrong
    )


def _quoted(wrong: Sequence[Package]) -> str:
    """Packages as pip takes them."""
    return " ".join(f"'{each.name}{each.wanted}'" for each in wrong)
