"""`firstorder measure`: one recipe's exact error, bias and variance."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from firstorder.cli import output
from firstorder.cli.api.compose import compose
from firstorder.cli.progress import shown

if TYPE_CHECKING:
    from firstorder.core.method.recipe import Recipe
    from firstorder.sim.config import Sim

SCHEMA = "firstorder.measure/1"

# what the table shows, in order, with units; everything else is in the JSON
ROWS = {
    "j_seq": "reward, J of the recipe's target",
    "j_mu": "reward, J of the rollout policy",
    "j_token": "reward, eq. (3)",
    "value_error": "reward, |J(pi) - J(mu) - E[R sum(rho - 1)]|",
    "replay_bias": "reward, J(pi natural) - J(pi)",
    "gradient_error": "relative, best-scaled, own target",
    "gradient_error_raw": "relative, unscaled, own target",
    "update_scale": "the best scale",
    "cosine": "own target",
    "gradient_error_natural": "relative, best-scaled, natural target",
    "cosine_natural": "natural target",
    "variance": "of a minibatch update, trace",
    "kl_mu_old": "nats/token, live routes",
    "kl_mu_old_replayed": "nats/token, the recipe's replay",
    "entropy": "nats/token",
    "flip_rate": "share of (token, layer)",
    "tokens_flipped": "share of tokens",
    "rows_replayed": "share of (token, layer), prompts included",
    "rows_changed": "share of (token, layer) replayed with other experts than the live choice",
}


def measure(
    recipe: str = typer.Argument(help="A shipped recipe (`firstorder recipes` lists them) or a TOML file."),
    set_: list[str] = typer.Option([], "--set", metavar="A.B=V", help="Override one setting; repeat for more."),
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
    strict: bool = typer.Option(False, "--strict", help="Refuse a recipe with parts that cannot act."),
) -> None:
    """Measure a recipe exactly in the simulator: error, bias and variance of its update."""
    output.check_target(json)
    run = compose(recipe, set_)
    method, sim = run.recipe, run.sim
    if strict:
        _check_strict(method, sim)
    started = time.perf_counter()
    with shown("measure"):
        document = report(method, sim)
    document["seconds"] = document["result"]["seconds"] = time.perf_counter() - started
    if json != "-":
        _show(method, document["result"])  # first, so that a file that cannot be written takes no result with it
    if json is not None:
        output.write_json(json, document)


def _check_strict(recipe: Recipe, sim: Sim) -> None:
    from firstorder.core.training.inert import check_strict
    from firstorder.sim.exact.measure import inert

    check_strict(inert(recipe, sim))


def report(recipe: Recipe, sim: Sim) -> dict[str, Any]:
    """The JSON document of a measurement."""
    import torch

    from firstorder import __version__
    from firstorder.sim.exact.measure import measure as measured

    result = measured(recipe, sim)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": 0.0,
        "torch": torch.__version__,
        "recipe": recipe.model_dump(),
        "sim": sim.model_dump(),
        "result": result,
    }


def _show(recipe: Recipe, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{recipe.about.name}, scope {recipe.scope}: {result['nodes']} prefixes, {result['seconds']:.2f} s"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_column("95% interval" if result["intervals"] else "")
    table.add_column("meaning", style="dim")
    for name, meaning in ROWS.items():
        value, sampled = (result | result["replay"])[name], result["intervals"].get(name)
        shown = "not formed" if value is None else f"{value:.6g}"
        interval = f"[{sampled['low']:.4g}, {sampled['high']:.4g}]" if sampled else ""
        table.add_row(name, shown, interval, meaning)
    console = Console()
    console.print(table)
    for line in result["inert"]:
        console.print(f"inert: {line}", style="yellow", highlight=False)
    for line in result["notes"]:
        console.print(f"note: {line}", style="dim", highlight=False)
