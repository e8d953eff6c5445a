"""How far two engines are apart: those of a model folder over a grid of their settings, or any two by their numbers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from .compose import ENGINES
from .overrides import laid
from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from firstorder.backends.parity import Point
    from firstorder.core.errors import FirstOrderError
    from firstorder.core.settings.grid import Axes

    from .overrides import Overrides
    from .pair import PairResult, Side

SCHEMA = "firstorder.probe/1"

# the columns after those of the axes: where a number is in the JSON, and how it is shown
COLUMNS: dict[str, tuple[tuple[str, ...], str]] = {
    "flips": (("routes", "route/flip_rate"), ".2%"),
    "tokens flipped": (("routes", "route/tokens_flipped"), ".2%"),
    **{
        f"{title}, {where}": ((where, name), ".2g")
        for title, name in (("mean abs D", "mean_abs_d"), ("k3 KL", "k3_kl"), ("F(2)", "ratio_tail_2"))
        for where in ("live", "R3")
    },
    **{f"1 - ESS, {where}": ((where, "one_minus_ess"), ".2g") for where in ("live", "R3")},
    "reward": (("reward",), ".3f"),
    "tokens/s": (("tokens_per_second",), ",.0f"),
}
PICTURED = ("flips", "k3 KL, live", "k3 KL, R3", "1 - ESS, R3")
WIDE = 240  # columns of a table that goes into a file


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ProbeResult(Result):
    """What was found at each point of the grid; one that failed has its error.

    Args:
        points: by point, `{"point": settings} | numbers`, or `{"point": settings, "error": line}`.
    """

    points: list[dict[str, Any]]

    def blocks(self) -> Iterator[Table | Text]:
        """A row for each point."""
        yield self._table()

    def print(self, console: Console | None = None) -> None:
        """Print what the command prints; in a terminal that cannot hold the table, a point after another."""
        from rich.console import Console

        console = console or Console()
        table = self._table()
        if not console.is_terminal:
            Console(file=console.file, width=WIDE, color_system=None, force_jupyter=False).print(table)
        elif console.measure(table, options=console.options.update(width=WIDE)).maximum <= console.width:
            console.print(table)
        else:
            heads = self._heads()
            console.print(self._title(), markup=False, highlight=False)
            for row in self.points:
                for head, cell in zip(heads, _cells(row), strict=True):
                    console.print(f"  {head:{max(map(len, heads))}}  {cell}", markup=False, highlight=False)
                console.print()

    def records(self) -> list[dict[str, Any]]:
        """A row for each point: its settings, the numbers of the table, None where there is none, and its error."""
        return [
            row["point"]
            | {head: _number(row, path) for head, (path, _) in COLUMNS.items()}
            | {"error": row.get("error")}
            for row in self.points
        ]

    def plot(self) -> Figure:
        """Flips, KL live and with R3, and what R3 leaves of the sample size, a bar for each point."""
        require_matplotlib()
        from firstorder.cli.report.bars import Bar, bars
        from firstorder.core.settings.grid import titled

        names = [titled(row["point"]).replace(", ", "\n") or self.document["model"] for row in self.points]
        return bars(
            {
                head: [
                    Bar(label=name, value=_number(row, COLUMNS[head][0]))
                    for name, row in zip(names, self.points, strict=True)
                ]
                for head in PICTURED
            }
        )

    def _title(self) -> str:
        document = self.document
        sizes = f"{document['prompts']} prompts, {document['responses']} responses to each"
        emulated = "; fp8 weights emulated" if any(row.get("emulated") for row in self.points) else ""
        return f"{document['model']}: {sizes}; D = log pi - log mu{emulated}"

    def _heads(self) -> list[str]:
        return [*self.document["grid"], *COLUMNS]

    def _table(self) -> Table:
        from rich import box
        from rich.table import Table

        table = Table(title=self._title(), title_justify="left", box=box.MARKDOWN, header_style="bold")
        for head in self._heads():
            table.add_column(head, justify="left" if head in self.document["grid"] else "right")
        for row in self.points:
            table.add_row(*_cells(row))
        return table


@overload
def probe(  # type: ignore[overload-overlap]  # a lone string is no list of settings
    model: Side, other: Side, /, *, limit: float | None = None, temperature: float = 1.0
) -> PairResult: ...
@overload
def probe(
    model: str | os.PathLike[str],
    grid: Overrides = (),
    overrides: Overrides = (),
    *,
    prompts: int = 128,
    responses: int = 4,
    done: Callable[[ProbeResult], None] = ...,
    **sections: Any,
) -> ProbeResult: ...
def probe(model: Any, grid: Any = (), overrides: Any = (), **named: Any) -> ProbeResult | PairResult:
    """Two engines beside each other: those of a model folder at every point of a grid, or any two on the same tokens.

    `probe(folder, grid)` samples with vLLM and scores with torchtitan at the same weights. `probe(a, b)` compares
    files or functions of a rollout engine and of a trainer, as `probe_pair`, and names the cause where they differ.

    Args:
        model: a model folder; or the rollout engine.
        grid: lists of values by dotted key of `[vllm]`, `[torchtitan]` and `[task]`; without one, a single point.
            Or the trainer.
        overrides: settings of all points by dotted key.
        named: of a folder `prompts`, `responses`, `done` and keys of a section, `vllm={"dtype": "float32"}`; of a pair
            `limit` and `temperature`.

    Raises:
        ConfigError: a setting or the model is refused, which is said before anything is measured.
        FirstOrderError: of the first point that failed; the others are measured all the same.
        DataError: two files have nothing in common, or a function fails.
    """
    from .pair import is_side, probe_pair

    if is_side(grid):
        return probe_pair(model, grid, **named)
    return probe_engines(model, grid, overrides, **named)


def probe_engines(
    model: str | os.PathLike[str],
    grid: Overrides = (),
    overrides: Overrides = (),
    *,
    prompts: int = 128,
    responses: int = 4,
    done: Callable[[ProbeResult], None] = lambda result: None,
    **sections: Any,
) -> ProbeResult:
    """`probe` of a model folder.

    Args:
        model: a model folder.
        grid: lists of values by dotted key of `[vllm]`, `[torchtitan]` and `[task]`; without one, a single point.
        overrides: settings of all points by dotted key.
        prompts: of the task.
        responses: to each.
        done: called with what is there so far: before the first point, with nothing, and after each.
        sections: keys of a section, `vllm={"dtype": "float32"}`.

    Raises:
        ConfigError: a setting or the model is refused, which is said before anything is measured.
        FirstOrderError: of the first point that failed; the others are measured all the same.
    """
    from firstorder.core.settings.grid import axes

    wanted = axes(grid)
    name = os.fspath(model)
    points = compose_points(name, laid(overrides, sections, simulated=False), wanted, prompts, responses)
    document = _document(name, wanted, prompts, responses)
    result = ProbeResult(document=document, points=document["result"])
    started = time.perf_counter()
    failed: list[FirstOrderError] = []
    done(result)
    with closing(_measured(points)) as rows:
        for place, numbers in rows:
            failure = None if isinstance(numbers, dict) else numbers
            result.points.append({"point": place} | ({"error": str(failure)} if failure else numbers))
            document["seconds"] = time.perf_counter() - started
            if failure:
                failed.append(_named(place, failure))
            done(result)
    if failed:
        raise failed[0]
    return result


def compose_points(
    model: str, overrides: Overrides, wanted: Axes, prompts: int, responses: int
) -> list[tuple[dict[str, Any], Point]]:
    """Every combination of the axes with its pair of engines, all checked.

    Raises:
        ConfigError: a key is not of the engines, a value is refused, or there is no model; the point is named.
    """
    from firstorder.backends.parity import Point
    from firstorder.backends.tasks.config import TaskSettings
    from firstorder.backends.torchtitan.config import Torchtitan
    from firstorder.backends.vllm.config import Vllm
    from firstorder.core.errors import ConfigError, FirstOrderError
    from firstorder.core.settings.grid import check_distinct, points
    from firstorder.core.settings.toml import assign, build

    pairs = laid(overrides)
    for key in (*wanted, *(key for key, _ in pairs)):
        if key.partition(".")[0] not in ENGINES or "." not in key:
            raise ConfigError(f"a probe has settings of [vllm], [torchtitan] and [task], got {key!r}; drop it")
        if key == "torchtitan.model":
            raise ConfigError("'torchtitan.model' is the argument MODEL of a probe; drop it")
    for key, _ in pairs:
        if key in wanted:
            raise ConfigError(f"{key!r} is both set and an axis; drop one of the two")
    for key, values in wanted.items():
        check_distinct(key, values)
    base = assign({"torchtitan": {"model": model}}, pairs)
    composed = []
    for place in points(wanted):
        tree = assign(base, place.items())
        try:
            point = Point(
                titan=build(Torchtitan, tree["torchtitan"], "torchtitan"),
                vllm=build(Vllm, tree.get("vllm", {}), "vllm"),
                task=build(TaskSettings, tree.get("task", {}), "task"),
                prompts=prompts,
                responses=responses,
            )
            point.check()
        except FirstOrderError as error:
            raise _named(place, error) from None
        composed.append((place, point))
    return composed


def _named(place: dict[str, Any], error: FirstOrderError) -> FirstOrderError:
    """The error of a point, which is named where there are several."""
    from firstorder.core.settings.grid import titled

    return type(error)(f"point ({titled(place)}): {error}") if place else error


def _document(model: str, wanted: Axes, prompts: int, responses: int) -> dict[str, Any]:
    import torch

    from firstorder import __version__

    return {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": 0.0,
        "torch": torch.__version__,
        "model": model,
        "prompts": prompts,
        "responses": responses,
        "grid": dict(wanted),
        "result": [],
    }


def _measured(points: list[tuple[dict[str, Any], Point]]) -> Generator[tuple[dict[str, Any], Any], None, None]:
    """(point, numbers or an error) one after another."""
    from firstorder.backends.probe import measure_all
    from firstorder.core.progress import tell
    from firstorder.core.settings.grid import titled

    with closing(measure_all([point for _, point in points])) as results:
        for number, (place, _) in enumerate(points):
            tell("points", number, len(points), titled(place))
            yield place, next(results)


def _number(row: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    """A number of a point; None where it failed or its task has no such number."""
    value: Any = row
    for name in path:
        value = value.get(name, {})
    return value if isinstance(value, float) else None


def _cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table; a point that failed is its settings and dashes."""
    label = " (emulated)" if row.get("emulated") else ""
    cells = [f"{value}{label if key == 'vllm.quantization' else ''}" for key, value in row["point"].items()]
    numbers = [(_number(row, path), form) for path, form in COLUMNS.values()]
    return cells + ["-" if number is None else format(number, form) for number, form in numbers]
