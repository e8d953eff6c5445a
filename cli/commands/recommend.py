"""`firstorder recommend`: which recipe a regime asks for."""

from __future__ import annotations

import typer

from firstorder.cli import output
from firstorder.cli.api import recommend as api
from firstorder.cli.progress import shown


def recommend(
    kl: float | None = typer.Option(None, "--kl", metavar="X", help="KL(mu || pi) of the engines, nats a token."),
    flips: float | None = typer.Option(
        None, "--flips", metavar="Y", help="Share of (token, layer) with other experts."
    ),
    n: int | None = typer.Option(None, "--n", metavar="N", help="Updates a rollout; 1 unless given."),
    horizon: int | None = typer.Option(None, "--horizon", metavar="T", help="Tokens of a response; 8192 unless given."),
    group: int | None = typer.Option(None, "--group", metavar="G", help="Responses to a prompt; 16 unless given."),
    entropy: float | None = typer.Option(None, "--entropy", metavar="H", help="Of the policy, nats a token; else 0.7."),
    match: str | None = typer.Option(
        None, "--match", metavar="RUN", help="A run folder, or the JSON of a probe or an audit: its numbers."
    ),
    exact: bool = typer.Option(False, "--exact", help="Measure at this very point, in up to a minute."),
    step: float | None = typer.Option(
        None, "--step", metavar="KL", help="KL(pi_old || pi_theta) after one update, nats a token; 1e-4 unless given."
    ),
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
) -> None:
    """Which replay, correction and clip a regime asks for, how sure that is, and where the answer changes."""
    output.check_target(json)
    with shown("recommend"):
        result = api.recommend(
            kl=kl,
            flips=flips,
            n=n,
            horizon=horizon,
            group=group,
            entropy=entropy,
            match=match,
            exact=exact,
            step=step,
        )
    output.show(result, json)
