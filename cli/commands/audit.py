"""`firstorder audit`: what the dump of a run says of it, whoever's it is."""

from __future__ import annotations

import typer

from firstorder.cli import output
from firstorder.cli.api import audit as api
from firstorder.cli.api import follow as following
from firstorder.cli.api import selftest
from firstorder.cli.progress import shown


def audit(
    paths: list[str] = typer.Argument(None, metavar="PATH...", help="Dumps of one run: files, or folders of them."),
    format: str | None = typer.Option(
        None, "--format", metavar="NAME", help="Whose dump it is, where it is not clear."
    ),
    layers: str | None = typer.Option(
        None, "--layers", metavar="A-B,C", help="The MoE layers, where routes hold a row for every layer of the model."
    ),
    fill: str | None = typer.Option(
        None, "--fill", metavar="FILL", help="What stands in route rows that no token has: zeros, minus-one, arange."
    ),
    experts: int | None = typer.Option(None, "--experts", metavar="E", help="Experts of the model."),
    top_k: int | None = typer.Option(None, "--top-k", metavar="K", help="Experts a token, where routes are flat."),
    replay: str | None = typer.Option(None, "--replay", metavar="MODE", help="What the run replays: disabled, R2, R3."),
    precision: str | None = typer.Option(
        None, "--precision", metavar="KIND", help="Of the rollout engine: fp32, fp16, bf16, fp8."
    ),
    minibatches: int | None = typer.Option(None, "--minibatches", metavar="N", help="Updates a rollout."),
    tokenizer: str | None = typer.Option(
        None, "--tokenizer", metavar="FILE", help="A tokenizer.json, so that the page shows tokens as text."
    ),
    out: str | None = typer.Option(None, "--out", metavar="DIR", help="A new folder for the page and its data."),
    json_: str | None = typer.Option(None, "--json", metavar="FILE", help="Write the result as JSON; - for stdout."),
    follow: bool = typer.Option(False, "--follow", help="Watch a folder that grows, and say what each step shows."),
    self_test: bool = typer.Option(
        False, "--self-test", help="Make every fault on good data and print which are found; takes no PATH."
    ),
) -> None:
    """Read the rollout and training dumps of any framework: numbers with intervals, faults by name, a verdict.

    Exit code 0: normal; 1: a fault is named; 2: unreadable.
    """
    options = api.AuditOptions(
        format=format,
        layers=layers,
        fill=fill,
        experts=experts,
        top_k=top_k,
        replay=replay,
        precision=precision,
        minibatches=minibatches,
        tokenizer=tokenizer,
    )
    beside = {"PATH": paths, "--follow": follow, "--out": out, "--json": json_}
    api.check_together(follow=follow, self_test=self_test, beside=beside)
    output.check_target(json_)
    with output.notes_told(), shown("audit"):
        if self_test:
            tested = selftest.self_test()
            output.show(tested, json_)
            raise typer.Exit(0 if tested.passed else 1)
        if follow:
            raise typer.Exit(following.follow(paths, options, typer.echo))
        result = api.audited(paths, options, out=out)
    output.show(result, json_)
    raise typer.Exit(result.code)
