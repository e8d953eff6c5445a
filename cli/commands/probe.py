"""`firstorder probe`: how far two real engines are apart, over a grid of their settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from firstorder.cli import output
from firstorder.cli.api import probe as api
from firstorder.cli.progress import shown

if TYPE_CHECKING:
    from firstorder.cli.api.probe import ProbeResult


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
    output.check_target(json)
    finished: list[ProbeResult] = []

    def done(result: ProbeResult) -> None:
        finished[:] = [result]
        if json is not None and json != "-" and result.points:
            output.write_json(json, result.document)  # what is finished stays, whatever comes

    try:
        with shown("probe"):
            api.probe(model, grid_, set_, prompts=prompts, responses=responses, done=done)
    finally:
        for result in finished:
            if json == "-":
                output.write_json(json, result.document)
            elif result.points:
                result.print()
