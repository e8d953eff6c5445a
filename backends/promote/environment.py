"""What a cluster installs: a lock that pip takes as it is, and this very package as a wheel."""

from __future__ import annotations

import base64
import hashlib
import io
import platform
import zipfile
from collections.abc import Iterator
from importlib import metadata, resources
from importlib.resources.abc import Traversable

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from firstorder.core.errors import ConfigError

PACKAGE, EXTRA = "firstorder", "engines-cuda"
BUILDS = ("torch", "vllm", "triton")  # whose CUDA builds require other packages and versions than what is here
DATE = (1980, 1, 1, 0, 0, 0)  # of every file in the wheel, so that the same package is the same wheel


def lock() -> str:
    """environment.lock: what the extra for CUDA needs, with the versions that are installed here.

    The closure of the extra over what is installed, where the markers of a requirement hold. A CPU build stands for the
    CUDA build of its version. What the builds of torch and vLLM need in turn is theirs to say: they pin what they
    must, and otherwise than their CPU builds do.
    """
    queue, versions, seen = [Requirement(f"{PACKAGE}[{EXTRA}]")], dict[str, str](), set[tuple[str, frozenset[str]]]()
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        distribution = installed(name)
        if distribution is not None:
            versions[name] = distribution.version.partition("+")[0]
        elif pinned := [one.version for one in requirement.specifier if one.operator == "=="]:
            versions[name] = pinned[0]
        if distribution is not None and name not in BUILDS:
            needs = [Requirement(line) for line in distribution.requires or ()]
            queue += [one for one in needs if _holds(one, extras)]
    versions.pop("triton", None)  # torch's CUDA build pins its own
    versions.pop(PACKAGE, None)
    lines = [f"{name}=={version}" for name, version in sorted(versions.items())]
    return "\n".join([_HEAD.format(python=platform.python_version(), wheel=wheel_name()), *lines]) + "\n"


_HEAD = """\
# Written with Python {python} on Linux x86_64. `bash install.sh` installs it, then {wheel} of this folder.
# What the CUDA builds of torch and vLLM need beyond these they pin themselves; install.sh keeps the outcome."""


def wheel_name() -> str:
    """The file name of the package's wheel."""
    return f"{PACKAGE}-{_own().version}-py3-none-any.whl"


def wheel() -> bytes:
    """This package, as it runs here, as a wheel: no build tool and no source tree are needed.

    Raises:
        ConfigError: the package is not installed, so that nothing says what it needs.
    """
    own = _own()
    about = f"{PACKAGE}-{own.version}.dist-info"
    files = dict(_files(resources.files(PACKAGE), PACKAGE))
    for name in ("METADATA", "entry_points.txt"):
        files[f"{about}/{name}"] = (own.read_text(name) or "").encode()
    made_by = "Wheel-Version: 1.0\nGenerator: firstorder promote\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{about}/WHEEL"] = made_by.encode()
    record = [f"{name},sha256={_hash(content)},{len(content)}" for name, content in sorted(files.items())]
    files[f"{about}/RECORD"] = "\n".join([*record, f"{about}/RECORD,,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, DATE)
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()


def _files(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _files(entry, f"{name}/{entry.name}")
        elif entry.is_file() and not entry.name.endswith((".pyc", ".pyo")):
            yield f"{name}/{entry.name}", entry.read_bytes()


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _holds(requirement: Requirement, extras: frozenset[str]) -> bool:
    """Whether a requirement is one here, for a package that is wanted with these extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _own() -> metadata.Distribution:
    distribution = installed(PACKAGE)
    if distribution is None:
        raise ConfigError(
            "firstorder is not installed here, so it cannot go into the bundle; pip install it, then promote"
        )
    return distribution


def installed(name: str) -> metadata.Distribution | None:
    """A distribution, or the build of it for CPUs; None if neither is here."""
    for one in (name, f"{name}-cpu"):
        try:
            return metadata.distribution(one)
        except metadata.PackageNotFoundError:
            continue
    return None
