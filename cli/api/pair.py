"""Two engines on the same tokens: files of their log-probs, or functions that stand for them."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.text import Text

    from firstorder.core.audit.pair import PairCheck

SCHEMA = "firstorder.pair/1"
NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # package.module:function
Side = str | os.PathLike[str] | Callable[..., Any]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PairResult(Result):
    """What a comparison of two engines says.

    Args:
        check: the causes that were found, and the sizes.
        notes: what was read, a sentence each.
    """

    check: PairCheck
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """No cause was found."""
        return self.check.passed

    @property
    def cause(self) -> str | None:
        """The name of the one that explains the most."""
        return self.check.cause

    def blocks(self) -> Iterator[Text]:
        """One line, and what was read."""
        from rich.text import Text

        yield Text(self.check.line, style="bold green" if self.passed else "bold red", no_wrap=True)  # one for logs
        for finding in self.check.findings[1:]:
            yield Text(f"also {finding.fault}: {finding.evidence}")
        yield from (Text(note, style="dim") for note in self.notes)

    def records(self) -> list[dict[str, Any]]:
        """A row for each cause, or one without: `cause`, `evidence`, `apart`, `k3`, `tokens`, `responses`."""
        sizes = {name: getattr(self.check, name) for name in ("apart", "k3", "tokens", "responses")}
        found: list[dict[str, Any]] = [{"cause": each.fault, "evidence": each.evidence} for each in self.check.findings]
        return [row | sizes for row in found or [{"cause": None, "evidence": None}]]

    def plot(self) -> Figure:
        """The size of D beside the limit."""
        require_matplotlib()
        from firstorder.cli.report.bars import Bar, bars

        sizes = [Bar(label="this pair", value=self.check.apart), Bar(label="limit", value=self.document["limit"])]
        return bars({"mean |D|, nats a token": sizes})


def check_alone(grid: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse settings of the engines of a model folder beside a pair.

    Raises:
        ConfigError: there are some.
    """
    from firstorder.core.errors import ConfigError

    for flag, given in (("--grid", grid), ("--set", overrides)):
        if given:
            raise ConfigError(f"{flag} {given[0]} is a setting of a model folder's engines; leave it out for a pair")


def is_side(side: object) -> bool:
    """Whether something stands for an engine: a path, `package.module:function`, or a function."""
    return isinstance(side, (str, os.PathLike)) or callable(side)


def probe_pair(a: Side, b: Side, *, limit: float | None = None, temperature: float = 1.0) -> PairResult:
    """Compare two engines on the same tokens, and name the cause where they differ.

    Args:
        a: the rollout engine: a file, `package.module:function`, or a function without arguments that returns `tokens`,
            `mask`, `logp_mu` and, if there are, `routes`, by name.
        b: the trainer: a file, or a function `(tokens, lengths, temperature)` that returns log-probs `[B, L]`.
        limit: largest mean |D| of engines with the same weights, nats a token.
        temperature: that was sampled at.

    Raises:
        ConfigError: one is a file and the other a function, or there is no such function.
        DataError: a file cannot be read, or the two have nothing in common.
    """
    from firstorder import __version__
    from firstorder.core.audit.pair import LIMIT, check_pair
    from firstorder.core.errors import ConfigError

    started = time.perf_counter()
    limit = LIMIT if limit is None else limit
    for key, value in (("limit", limit), ("temperature", temperature)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{key} must be above 0 and finite, got {value:g}; leave it out for the default")
    notes: tuple[str, ...] = ()
    sides = [_function(side) for side in (a, b)]
    if (sides[0] is None) != (sides[1] is None):
        raise ConfigError(f"a pair is two files or two functions, got {_name(a)} and {_name(b)}; give two of a kind")
    if sides[0] is not None and sides[1] is not None:
        given = _asked(sides[0], _name(a))
        check = check_pair(**given, score=_scorer(sides[1], _name(b)), temperature=temperature, limit=limit)
    else:
        from firstorder.core.audit.sides import matched

        found = matched(Path(os.fspath(a)), Path(os.fspath(b)))  # type: ignore[arg-type]
        notes = found.notes
        columns = {name: x for name, x in vars(found).items() if name != "notes"}
        check = check_pair(**columns, temperature=temperature, limit=limit)
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": time.perf_counter() - started,
        "sides": [_name(a), _name(b)],
        "limit": limit,
        "temperature": temperature,
        "notes": list(notes),
        "result": asdict(check) | {"passed": check.passed, "cause": check.cause, "line": check.line},
    }
    return PairResult(document=document, check=check, notes=notes)


def _name(side: Side) -> str:
    return os.fspath(side) if isinstance(side, (str, os.PathLike)) else getattr(side, "__qualname__", repr(side))


def _function(side: Side) -> Callable[..., Any] | None:
    """The function that a side is or names; None for a file.

    Raises:
        ConfigError: there is no such module or function.
    """
    from firstorder.core.errors import ConfigError

    if not isinstance(side, (str, os.PathLike)):
        return side
    name = os.fspath(side)
    if not NAMED.fullmatch(name) or os.path.exists(name):
        return None
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(import_module(module), attribute)
    except Exception as error:  # whatever the module does when it is imported
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{name}: {line}; give package.module:function, found from the current folder") from error
    if not callable(function):
        raise ConfigError(f"{name} is no function but {type(function).__name__}; give package.module:function")
    wanted: Callable[..., Any] = function
    return wanted


def _asked(rollout: Callable[..., Any], name: str) -> dict[str, Any]:
    """What the rollout engine returns, as tensors.

    Raises:
        DataError: something is missing, or it failed.
    """
    from firstorder.core.errors import DataError

    given = _called(rollout, name)
    if not isinstance(given, Mapping):
        given = {key: getattr(given, key, None) for key in ("tokens", "mask", "logp_mu", "routes")}
    for key in ("tokens", "mask", "logp_mu"):
        if given.get(key) is None:
            raise DataError(f"{name} must return `tokens`, `mask` and `logp_mu` by name, got no `{key}`")
    return {key: _tensor(value, name, key) for key, value in given.items() if value is not None}


def _scorer(train: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda *given: _tensor(_called(train, name, *given), name, "what it returns")


def _tensor(value: Any, name: str, key: str) -> Any:
    import torch

    from firstorder.core.errors import DataError

    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise DataError(f"{name}: `{key}` is no array: {line}; give tensors or lists of one length") from error


def _called(function: Callable[..., Any], name: str, *given: Any) -> Any:
    from firstorder.core.errors import DataError, FirstOrderError

    try:
        return function(*given)
    except FirstOrderError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise DataError(f"{name} raised {type(error).__name__}: {line}; call it by itself to see where") from error
