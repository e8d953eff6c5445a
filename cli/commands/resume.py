"""`firstorder resume`: a run that goes on from its folder alone."""

from __future__ import annotations

import typer

from .train import run


def resume(
    folder: str = typer.Argument(metavar="DIR", help="The folder of a run of `firstorder train`, finished or not."),
    set_: list[str] = typer.Option(
        [], "--set", metavar="A.B=V", help="schedule.steps=N makes the run longer; no setting of the method can change."
    ),
    track: list[str] = typer.Option([], "--track", metavar="SINK", help="Show the run in another sink as well."),
    alarm: str | None = typer.Option(None, "--alarm", metavar="watch|stop", help="As of `firstorder train`."),
) -> None:
    """Go on with a run from its newest checkpoint, by the settings in its folder; or make a finished one longer."""
    from firstorder.cli.api import resume as api

    run(lambda: api.resume(folder, set_, track=track, alarm=alarm))
