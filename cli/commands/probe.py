"""`firstorder probe`: how far two engines are apart, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from firstorder.cli import complete, output
from firstorder.cli.api import pair as pairs
from firstorder.cli.api import probe as api
from firstorder.cli.progress import shown

if TYPE_CHECKING:
    from firstorder.cli.api.probe import ProbeResult


def probe(
    model: str = typer.Argument(
        metavar="MODEL|ROLLOUT", help="A model folder; or the rollout engine: a dump, or package.module:function."
    ),
    trainer: str | None = typer.Argument(None, metavar="[TRAINER]", help="The trainer of a pair, given as ROLLOUT is."),
    grid_: list[str] = typer.Option(
        [], "--grid", metavar="A.B=V1,V2", help="An axis of [vllm], [torchtitan] or [task]; repeat for more."
    ),
    set_: list[str] = typer.Option(
        [], "--set", metavar="A.B=V", autocompletion=complete.settings, help="Override one setting of all points."
    ),
    prompts: int = typer.Option(128, "--prompts", min=1, max=2**20, help="Prompts of the task."),
    responses: int = typer.Option(4, "--responses", min=1, max=2**20, help="Responses to each."),
    limit: float | None = typer.Option(
        None, "--limit", metavar="NATS", help="Of a pair: largest mean |D| of engines with the same weights; 0.2."
    ),
    temperature: float = typer.Option(1.0, "--temperature", metavar="T", help="Of a pair: what was sampled at."),
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
) -> None:
    """How far engines are apart: those of a model folder by flips, KL, F(2) and ESS, or any pair, and why.

    A pair is two files with log-probs of the same tokens, or two functions; exit code 0 passes, 1 names a cause.
    """
    output.check_target(json)
    if trainer is not None:
        pairs.check_alone(grid_, set_)
        pair = pairs.probe_pair(model, trainer, limit=limit, temperature=temperature)
        output.show(pair, json)
        raise typer.Exit(0 if pair.passed else 1)
    finished: list[ProbeResult] = []

    def done(result: ProbeResult) -> None:
        finished[:] = [result]
        if json is not None and json != "-" and result.points:
            output.write_json(json, result.document)  # what is finished stays, whatever comes

    try:
        with shown("probe"):
            api.probe_engines(model, grid_, set_, prompts=prompts, responses=responses, done=done)
    finally:
        for result in finished:
            if json == "-":
                output.write_json(json, result.document)
            elif result.points:
                result.print()
