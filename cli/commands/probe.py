"""`firstorder probe`: how far two real engines are apart, over a grid of their settings."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import typer

from firstorder.cli import output
from firstorder.cli.api.compose import ENGINES
from firstorder.cli.progress import shown

if TYPE_CHECKING:
    from firstorder.backends.parity import Point
    from firstorder.core.errors import FirstOrderError
    from firstorder.core.settings.grid import Axes

SCHEMA = "firstorder.probe/1"

Found = dict[str, Any]

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
WIDE = 240  # columns of a table that goes into a file


def probe(
    model: str = typer.Argument(help="A model folder, e.g. from `firstorder coldstart`."),
    grid_: list[str] = typer.Option(
        [], "--grid", metavar="A.B=V1,V2", help="An axis of [vllm], [torchtitan] or [task]; repeat for more."
    ),
    set_: list[str] = typer.Option([], "--set", metavar="A.B=V", help="Override one setting of all points."),
    prompts: int = typer.Option(128, "--prompts", min=1, max=2**20, help="Prompts of the task."),
    responses: int = typer.Option(4, "--responses", min=1, max=2**20, help="Responses to each."),
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
) -> None:
    """Sample with vLLM, score with torchtitan at the same weights: flips, KL, F(2), ESS, live and with R3."""
    from firstorder.core.settings.grid import axes

    output.check_target(json)
    wanted = axes(grid_)
    points = compose_points(model, set_, wanted, prompts, responses)
    document = _document(model, wanted, prompts, responses)
    started = time.perf_counter()
    failed: list[FirstOrderError] = []
    try:
        for place, found in _measured(points):
            document["result"].append({"point": place} | (found if isinstance(found, dict) else {"error": str(found)}))
            document["seconds"] = time.perf_counter() - started
            if not isinstance(found, dict):
                failed.append(_named(place, found))
            if json is not None and json != "-":
                output.write_json(json, document)  # what is finished stays, whatever comes
    finally:
        if json == "-":
            output.write_json(json, document)
        elif document["result"]:
            _show(document)
    if failed:
        raise failed[0]


def compose_points(
    model: str, assignments: list[str], wanted: Axes, prompts: int, responses: int
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
    from firstorder.core.settings.toml import assign, build, override

    assigned = [assignment.partition("=")[0].strip() for assignment in assignments]
    for key in (*wanted, *assigned):
        if key.partition(".")[0] not in ENGINES or "." not in key:
            raise ConfigError(f"a probe has settings of [vllm], [torchtitan] and [task], got {key!r}; drop it")
        if key == "torchtitan.model":
            raise ConfigError("'torchtitan.model' is the argument MODEL of a probe; drop it")
        if key in wanted and key in assigned:
            raise ConfigError(f"{key!r} is both set and an axis; drop one of the two")
    for key, values in wanted.items():
        check_distinct(key, values)
    base = override({"torchtitan": {"model": model}}, assignments)
    found = []
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
        found.append((place, point))
    return found


def _named(place: dict[str, Any], error: FirstOrderError) -> FirstOrderError:
    """The error of a point, which is named where there are several."""
    from firstorder.core.settings.grid import titled

    return type(error)(f"point ({titled(place)}): {error}") if place else error


def _document(model: str, wanted: Axes, prompts: int, responses: int) -> Found:
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


def _measured(points: list[tuple[dict[str, Any], Point]]) -> Any:
    """(point, what was found) one after another."""
    from firstorder.backends.probe import measure_all
    from firstorder.core.progress import tell
    from firstorder.core.settings.grid import titled

    with shown("probe"), closing(measure_all([point for _, point in points])) as found:
        for done, (place, _) in enumerate(points):
            tell("points", done, len(points), titled(place))
            yield place, next(found)


def _show(document: Found) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    sizes = f"{document['prompts']} prompts, {document['responses']} responses to each"
    emulated = "; fp8 weights emulated" if any(row.get("emulated") for row in document["result"]) else ""
    title = f"{document['model']}: {sizes}; D = log pi - log mu{emulated}"
    heads = [*document["grid"], *COLUMNS]
    rows = [_cells(row) for row in document["result"]]
    table = Table(title=title, title_justify="left", box=box.MARKDOWN, header_style="bold")
    for head in heads:
        table.add_column(head, justify="left" if head in document["grid"] else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        Console(width=WIDE).print(table)
    elif console.measure(table, options=console.options.update(width=WIDE)).maximum <= console.width:
        console.print(table)
    else:  # a point after another, which a narrow terminal can hold
        console.print(title, markup=False, highlight=False)
        for row in rows:
            for head, cell in zip(heads, row, strict=True):
                console.print(f"  {head:{max(map(len, heads))}}  {cell}", markup=False, highlight=False)
            console.print()


def _cells(row: Found) -> list[str]:
    """A row of the table; a point that failed is its settings and dashes."""
    label = " (emulated)" if row.get("emulated") else ""
    cells = [f"{value}{label if key == 'vllm.quantization' else ''}" for key, value in row["point"].items()]
    for path, form in COLUMNS.values():
        value: Any = row
        for name in path:
            value = value.get(name, {})
        cells.append(format(value, form) if isinstance(value, float) else "-")
    return cells
