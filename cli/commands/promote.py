"""`firstorder promote`: evidence, a dry run, and a folder that a cluster can run."""

from __future__ import annotations

import typer

from firstorder.cli import complete
from firstorder.cli.api import promote as api
from firstorder.cli.progress import shown


def promote(
    source: str = typer.Argument(
        metavar="RUN|RECIPE", autocompletion=complete.recipes, help="A run folder, a shipped recipe or a TOML file."
    ),
    world: int = typer.Option(..., "--world", min=1, help="GPUs of the trainer."),
    out: str = typer.Option(..., "--out", metavar="DIR", help="A new or empty folder for the bundle."),
    gpu: str = typer.Option("h100", "--gpu", help="Of every node: a100-80gb, h100, h200, b200."),
    match: str | None = typer.Option(
        None, "--match", metavar="RUN", help="Take KL and flip rate from a run of this recipe on real engines."
    ),
    horizon: int | None = typer.Option(
        None,
        "--horizon",
        min=8,
        max=32768,
        metavar="TOKENS",
        help="Of a response in the simulator's trial; the longest response unless given, as far as the trial reaches.",
    ),
    evidence: str | None = typer.Option(
        None, "--evidence", metavar="FILE", help="The gate.json of an earlier bundle, in place of another trial."
    ),
    rehearse: str | None = typer.Option(
        None, "--rehearse", metavar="MODEL", help="Run the bundle's launchers for a step on this small model."
    ),
    set_: list[str] = typer.Option(
        [],
        "--set",
        metavar="A.B=V",
        autocompletion=complete.settings,
        help="Override a key of [torchtitan], [vllm] or [task].",
    ),
    account: str | None = typer.Option(None, "--account", help="That SLURM charges; a placeholder unless given."),
    partition: str | None = typer.Option(None, "--partition", help="Of SLURM's nodes; a placeholder unless given."),
    time: str | None = typer.Option(
        None, "--time", metavar="TIME", help="That a SLURM job may take, as 24:00:00; a placeholder unless given."
    ),
    force: bool = typer.Option(False, "--force", help="Promote a recipe that the simulator shows unstable."),
) -> None:
    """Turn a recipe into a bundle for a cluster: evidence, settings, launchers, and a dry run without a GPU."""
    with shown("promote"):
        result = api.promote(
            source,
            set_,
            world=world,
            out=out,
            gpu=gpu,
            match=match,
            horizon=horizon,
            evidence=evidence,
            rehearse=rehearse,
            account=account,
            partition=partition,
            time=time,
            force=force,
        )
    result.print()
