"""A recipe and its backend sections, from a name or file and dotted overrides; and a grid of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .overrides import laid, tables

if TYPE_CHECKING:
    from firstorder.backends.session import EngineRun
    from firstorder.core.method.recipe import Recipe
    from firstorder.core.settings.grid import Axes
    from firstorder.sim.sweep.ensemble import Cell
    from firstorder.sim.training.session import SimRun

    from .overrides import Overrides, Source

RECIPE = "recipe"  # the axis whose values are recipes
EXPERIMENT = ("schedule", "optimizer", "sim")  # the sections of the base that such an axis keeps
SIM = ("sim",)  # the sections that the simulator reads
ENGINES = ("torchtitan", "vllm", "task")  # those that the real engines read; a file may hold both


def compose(recipe: Source, overrides: Overrides, settings: str | None = None) -> SimRun:
    """The recipe and its `[sim]` section, both validated; `settings` names a file that is laid over the recipe.

    Args:
        recipe: a shipped name, a file, or the object.
        overrides: as of `overrides.laid`.
        settings: a file whose sections lie between the two.

    Raises:
        ConfigError: anything unknown, out of range or contradictory.
    """
    return resolve(_read(recipe, overrides, SIM, settings))


def resolve(tree: dict[str, Any]) -> SimRun:
    """`compose` for tables that are read already."""
    from firstorder.core.settings.toml import build, overlay
    from firstorder.sim.config import Sim

    recipe, sections = split(tree)
    sim = build(Sim, overlay(Sim().model_dump(), sections["sim"]), "sim")
    from firstorder.sim.training.session import SimRun  # after the settings, whose mistakes need not wait for torch

    return SimRun(recipe=recipe, sim=sim)


def compose_engines(recipe: Source, overrides: Overrides, settings: str | None = None) -> EngineRun:
    """As `compose`, with the `[torchtitan]`, the `[vllm]` and the `[task]` section.

    Raises:
        ConfigError: anything unknown, out of range or contradictory.
    """
    from firstorder.backends.session import EngineRun
    from firstorder.backends.tasks.config import TaskSettings
    from firstorder.backends.torchtitan.config import Torchtitan
    from firstorder.backends.vllm.config import Vllm
    from firstorder.core.settings.toml import build

    method, sections = split(_read(recipe, overrides, ENGINES, settings))
    return EngineRun(
        recipe=method,
        torchtitan=build(Torchtitan, sections["torchtitan"], "torchtitan"),
        vllm=build(Vllm, sections["vllm"], "vllm"),
        task=build(TaskSettings, sections["task"], "task"),
    )


def split(tree: dict[str, Any]) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """The validated recipe, and the tables of the backend sections as given.

    Raises:
        ConfigError: an unknown section, or a recipe that is not valid.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.core.method.recipe import Recipe
    from firstorder.core.settings.toml import build, nearest

    backends = (*SIM, *ENGINES)
    sections = [*Recipe.model_fields, *backends]
    for key, value in tree.items():
        if key not in sections:
            raise ConfigError(f"unknown section {key!r}; {nearest(key, sections)}valid sections: {', '.join(sections)}")
        if not isinstance(value, dict):
            raise ConfigError(f"{key!r} must be a section, got {value!r}")
    method = build(Recipe, {key: table for key, table in tree.items() if key not in backends})
    return method, {key: tree.get(key, {}) for key in backends}


def check_read(keys: Iterable[str], own: tuple[str, ...]) -> None:
    """Refuse a key that was asked for and that no one would read, since it belongs to another backend.

    Raises:
        ConfigError: naming the first of them.
    """
    from firstorder.core.errors import ConfigError

    for key in keys:
        section = key.partition(".")[0].strip()
        if section in (*SIM, *ENGINES) and section not in own:
            reader, here = ("simulator", "real engines") if section in SIM else ("real engines", "simulator")
            raise ConfigError(f"{key!r} is a setting of the {reader}, and this is about the {here}; drop it")


def _read(recipe: Source, overrides: Overrides, own: tuple[str, ...], settings: str | None) -> dict[str, Any]:
    """The tables of a recipe, a file of settings laid over them, under overrides of them or of the backend's own
    sections."""
    from firstorder.core.settings.toml import assign, overlay, read

    pairs = laid(overrides)
    check_read((key for key, _ in pairs), own)
    over = {} if settings is None else read(settings)
    return assign(overlay(tables(recipe), over), pairs)


def grid(recipe: Source, overrides: Overrides, given: Overrides) -> tuple[Axes, list[Cell]]:
    """The axes, their values as the cells resolve them, and every cell, checked.

    A cell is the base with `overrides` and its point of the grid laid over it. On an axis `recipe` each value is a
    recipe whose method takes the place of the base's; what it says about schedule, optimiser and simulator is laid
    over what the base says. Where an axis changes the method, the scope that a recipe declares is not held against it.

    Args:
        recipe: the base, as of `compose`.
        overrides: for all cells, as of `compose`.
        given: `a.b=v1,v2`, one an axis, or a list of values by key; on the axis `recipe` they may be objects.

    Raises:
        ConfigError: an axis is not one, or a cell is refused, which is named.
        SizeError: a cell's responses are too many to enumerate.
    """
    from firstorder.core import progress
    from firstorder.core.errors import ConfigError, FirstOrderError
    from firstorder.core.settings.grid import axes, check_distinct, points, titled
    from firstorder.core.settings.toml import assign, flat
    from firstorder.sim.sweep.ensemble import Cell

    wanted = axes(given)
    pairs = laid(overrides)
    check_read([*wanted, *(key for key, _ in pairs)], SIM)
    for key, _ in pairs:
        if key in wanted:
            raise ConfigError(f"{key!r} is both set and an axis; drop one of the two")
    base, bases = tables(recipe), {}
    if RECIPE in wanted:
        bases = {_label(each): graft(base, tables(each)) for each in wanted[RECIPE]}
        wanted[RECIPE] = [_label(each) for each in wanted[RECIPE]]
    bases = bases or {None: base}
    if any(key != RECIPE and key.split(".")[0] not in EXPERIMENT for key in wanted):
        bases = {each: undeclared(tree) for each, tree in bases.items()}
    bases = {each: assign(tree, pairs) for each, tree in bases.items()}
    cells: list[Cell] = []
    places = points(wanted)
    for number, point in enumerate(progress.steps("cells checked", places)):
        values = [(key, each) for key, each in point.items() if key != RECIPE]
        try:
            run = resolve(assign(bases[point.get(RECIPE)], values))
            run.check()
        except FirstOrderError as error:
            raise type(error)(f"cell {number} ({titled(point)}): {error}") from None
        config = flat(run.settings())
        resolved = {key: config.get(key, each) for key, each in point.items()}
        cells.append(Cell(name=f"{number:04d}", point=resolved, recipe=run.recipe, sim=run.sim))
    found = {key: [_first(key, each, places, cells) for each in values] for key, values in wanted.items()}
    for key, values in found.items():
        check_distinct(key, values)
    return found, cells


def _label(recipe: Any) -> Any:
    """A value of the axis `recipe` as it is recorded: an object by its name."""
    from firstorder.core.method.recipe import Recipe

    return recipe.about.name if isinstance(recipe, Recipe) else recipe


def graft(base: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """The method of a named recipe in the experiment of a base."""
    from firstorder.core.settings.toml import overlay

    kept = {key: base[key] for key in EXPERIMENT if key in base}
    return overlay(kept, named)


def undeclared(tree: dict[str, Any]) -> dict[str, Any]:
    """A recipe that does not say how far its weight looks."""
    about = {key: value for key, value in tree.get("about", {}).items() if key != "scope"}
    return tree | {"about": about}


def _first(key: str, value: Any, places: list[dict[str, Any]], cells: list[Cell]) -> Any:
    """What the first cell with a value on an axis made of it, such as 1.0 of 1."""
    return next(cell.point[key] for place, cell in zip(places, cells, strict=True) if place[key] is value)
