"""The settings there are: every key that `--set` takes, what it means and who reads it. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .compose import ENGINES, SIM
from .results import Documented, Listing, listed

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from firstorder.core.settings.described import Setting

SCHEMA = "firstorder.keys/1"
TRAINED = ("sim.pool", "sim.members", "sim.checkpoint_every", "sim.evaluate_every")  # which no measurement reads
SIMULATED, REAL = ("measure", "train", "sweep"), ("train --backend torchtitan", "promote")
PROBED = (*REAL, "probe")
UNLISTED = ("about",)  # what a recipe is called, which is no setting of it


@dataclass(frozen=True, kw_only=True)
class Key:
    """A setting.

    Args:
        key: dotted, as `--set` takes it.
        default: its value unless a recipe or `--set` gives another; None where it is unset.
        takes: its type and its range.
        values: all that it takes, where they can be listed.
        interval: the range of a number.
        why: what is wrong with a number beyond it.
        meaning: what it does.
        acts: where: `simulator`, `engines`, or `both`.
        commands: those that read it.
        example: an assignment that is taken, with quotes where a shell needs them.
    """

    key: str
    default: Any
    takes: str
    values: tuple[Any, ...]
    interval: str | None
    why: str | None
    meaning: str
    acts: str
    commands: tuple[str, ...]
    example: str

    def lines(self) -> Iterator[tuple[str, str]]:
        """All there is to say of it, with what each line is."""
        from firstorder.core.settings.described import default

        yield "meaning", self.meaning
        yield "default", default(self.default)
        yield "takes", f"{self.takes}: {self.why}" if self.why else self.takes
        yield "acts in", f"{_PLACES[self.acts]}; read by {', '.join(self.commands)}"
        yield "example", f"--set {self.example}"


_PLACES = {"simulator": "the simulator", "engines": "the real engines", "both": "the simulator and the real engines"}


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class KeysResult(Documented, Listing):
    """The keys with a prefix, in the order of their sections.

    Args:
        rows: one a key.
    """

    rows: tuple[Key, ...]

    @property
    def names(self) -> list[str]:
        """The dotted keys."""
        return [row.key for row in self.rows]

    def __iter__(self) -> Iterator[Key]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self) -> Iterator[Table | Text]:
        """A line for each key, or all about the only one."""
        from rich.text import Text

        if len(self.rows) == 1:
            yield Text(self.rows[0].key, style="bold")
            yield from (Text(f"  {what:8} {said}") for what, said in self.rows[0].lines())
            return
        yield self._table()
        yield Text(f"{len(self.rows)} keys; `firstorder keys KEY` says all about one", style="dim")

    def _table(self) -> Table:
        from firstorder.core.settings.described import default

        return listed(
            [("key", None), ("default", 16), ("takes", 24), ("meaning", None)],
            [(row.key, default(row.default), row.takes, row.meaning) for row in self.rows],
        )


def keys(prefix: str = "") -> KeysResult:
    """Every setting there is, or those of a section, or one.

    Args:
        prefix: a section such as `clip` or `sim.numerics`, a dotted key, or how some begin.

    Raises:
        ConfigError: no key begins so; the nearest is named.

    Example:
        >>> next(key.example for key in keys("clip.high"))
        'clip.high=0.27'
    """
    from firstorder import __version__

    rows = tuple(map(_key, found(prefix)))
    listed = [{name: getattr(row, name) for name in Key.__dataclass_fields__} for row in rows]
    return KeysResult(document={"schema": SCHEMA, "version": __version__, "keys": listed}, rows=rows)


def found(prefix: str) -> list[Setting]:
    """The settings that a section, a key, or the beginning of one names.

    Raises:
        ConfigError: there is none.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.core.settings.toml import nearest, shown

    known = {setting.key: setting for setting in every()}
    for wanted in (
        [key for key in known if key == prefix],
        [key for key in known if key.startswith(f"{prefix.rstrip('.')}.")],
        [key for key in known if key.startswith(prefix)],
    ):
        if wanted:
            return [known[key] for key in wanted]
    sections = dict.fromkeys(key.rpartition(".")[0] for key in known)
    last = {key.rpartition(".")[2]: key for key in reversed(known)}
    hint = f"did you mean {last[prefix]!r}? " if prefix in last else nearest(prefix, [*sections, *known])
    raise ConfigError(f"no key or section {shown(prefix)}; {hint}`firstorder keys` lists them")


def every() -> Iterator[Setting]:
    """Every setting of a recipe, of the simulator and of the real engines."""
    from firstorder.core.settings.described import settings

    for name, section in sections().items():
        yield from settings(section, f"{name}.")


def sections() -> dict[str, Any]:
    """The sections with their defaults, in the order in which a file has them."""
    from firstorder.backends.tasks.config import TaskSettings
    from firstorder.backends.torchtitan.config import Torchtitan
    from firstorder.backends.vllm.config import Vllm
    from firstorder.core.method.recipe import Recipe
    from firstorder.sim.config import Sim

    recipe = {name: section for name, section in Recipe() if name not in UNLISTED}
    return recipe | {"sim": Sim(), "torchtitan": Torchtitan(), "vllm": Vllm(), "task": TaskSettings()}


def _key(setting: Setting) -> Key:
    from firstorder.core.settings.described import kind

    acts, commands = _readers(setting.key)
    return Key(
        key=setting.key,
        default=setting.default,
        takes=kind(setting.field),
        values=tuple(setting.choices),
        interval=setting.interval,
        why=setting.why,
        meaning=setting.meaning,
        acts=acts,
        commands=commands,
        example=setting.example,
    )


def _readers(key: str) -> tuple[str, tuple[str, ...]]:
    """Where a key acts, and the commands that read it."""
    section = key.partition(".")[0]
    if section in ENGINES:
        return "engines", PROBED
    if section in SIM:
        return "simulator", SIMULATED[1:] if key in TRAINED else SIMULATED
    return "both", SIMULATED
