"""`firstorder promote`: evidence, a dry run, and a folder that a cluster can run."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .progress import shown

if TYPE_CHECKING:
    from firstorder.backends.promote.dry import Dry
    from firstorder.backends.promote.plan import Plan, Step
    from firstorder.backends.tasks.config import TaskSettings
    from firstorder.backends.torchtitan.config import Torchtitan
    from firstorder.backends.vllm.config import Vllm
    from firstorder.core.recipe import Recipe
    from firstorder.sim.gate import Target

SCHEMA = "firstorder.promote/1"


def promote(
    source: str = typer.Argument(metavar="RUN|RECIPE", help="A run folder, a shipped recipe or a TOML file."),
    world: int = typer.Option(..., "--world", min=1, help="GPUs of the trainer."),
    out: str = typer.Option(..., "--out", metavar="DIR", help="A new or empty folder for the bundle."),
    gpu: str = typer.Option("h100", "--gpu", help="Of every node: a100-80gb, h100, h200, b200."),
    match: str | None = typer.Option(
        None, "--match", metavar="RUN", help="Take KL and flip rate from a run of this recipe on real engines."
    ),
    evidence: str | None = typer.Option(
        None, "--evidence", metavar="FILE", help="The gate.json of an earlier bundle, in place of another trial."
    ),
    rehearse: str | None = typer.Option(
        None, "--rehearse", metavar="MODEL", help="Run the bundle's launchers for a step on this small model."
    ),
    set_: list[str] = typer.Option(
        [], "--set", metavar="A.B=V", help="Override a key of [torchtitan], [vllm] or [task]."
    ),
    force: bool = typer.Option(False, "--force", help="Promote a recipe that the simulator shows unstable."),
) -> None:
    """Turn a recipe into a bundle for a cluster: evidence, settings, launchers, and a dry run without a GPU."""
    from firstorder.backends.extras import require
    from firstorder.backends.promote import dry, models, plan
    from firstorder.backends.promote.hardware import gpu as named
    from firstorder.core.errors import ConfigError
    from firstorder.core.record import check_folder

    content, recipe = read_source(source)
    check_folder(Path(out))
    card = named(gpu)
    shape = models.shape_of()
    titan, vllm, task = models.engines(set_)
    where = plan.plan(shape, recipe, titan, vllm, world, card)
    target = wanted(recipe, match)
    known = None if evidence is None else read_evidence(recipe, evidence)
    if rehearse is not None:
        check_rehearsal(Path(rehearse))
    require("torchtitan")
    typer.echo(f"dry run: {shape.num_hidden_layers} layers over {world} ranks", err=True)
    with shown("dry run"):
        found = dry.dry_run(shape, titan, recipe, world)
    if found.peak > card.usable:
        plan.check_memory(found.peak, dry.per_position(shape, titan, recipe, world, found.peak), titan, card)
    moved = plan.step(shape, recipe, titan, vllm, where)
    with tempfile.TemporaryDirectory(prefix="firstorder-") as work:
        if known is None:
            typer.echo("gate: the recipe's twin and its neighbours in the simulator", err=True)
        with shown("gate"):
            gate = known or tried(recipe, target, Path(work, "gate"))
        if not gate["stable"] and not force:
            raise ConfigError(
                f"the simulator shows {recipe.about.name} unstable: {collapsed(gate):.0%} of its seeds collapse; "
                f"the safest neighbour is {gate['safest']}, or give --force"
            )
        notes = [*remarks(recipe, where, moved), *([] if gate["stable"] else ["Promoted with --force."])]
        files = contents(recipe, content, where, moved, found, gate, notes, sections=(titan, vllm, task))
        with shown("bundle"):
            write(Path(out), files, Path(work), recipe, rehearse, gate)
    show(where, moved, found, gate, notes)
    typer.echo(f"{out}: {recipe.about.name} on {world} x {card.name}")


def read_source(source: str) -> tuple[bytes, Recipe]:
    """What is promoted, byte for byte, and the recipe in it.

    Raises:
        ConfigError: there is none.
    """
    from firstorder.core import toml

    from .compose import split

    file = Path(source) / "config.toml" if Path(source).is_dir() else Path(source)
    name = str(file) if Path(source).is_dir() else source
    recipe, _ = split(toml.read(name))
    return (toml.source(name).encode() if name in toml.shipped() else file.read_bytes()), recipe


def wanted(recipe: Recipe, match: str | None) -> Target:
    """The discrepancy that the simulated engines get: published, or that of a run of the same method.

    Raises:
        ConfigError: it is no run, one of another recipe, or one whose engines agree.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.core.recipe import fingerprint
    from firstorder.sim.gate import PUBLISHED, check_evidence

    if match is None:
        return PUBLISHED
    if not Path(match, "metrics.jsonl").is_file():
        raise ConfigError(f"--match {match} holds no metrics.jsonl; give the folder of a run")
    _, ran = read_source(match)
    check_evidence(recipe, fingerprint(ran), f"--match {match}")
    lines = [json.loads(line) for line in Path(match, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kl, flips = (_mean([line[key] for line in lines]) for key in ("kl", "route/flip_rate"))
    if not lines or kl <= 0 or flips <= 0:
        raise ConfigError(
            f"--match {match} has a mean kl of {kl:.3g} and a flip rate of {flips:.3g}, and both must be above 0; "
            "give a run whose engines differ, or leave it out"
        )
    replayed = "R3" if ran.router_replay.mode == "R3" else "disabled"
    return replace(PUBLISHED, kl=kl, flip_rate=flips, mode=replayed, source=f"{len(lines)} steps of {match}")


def read_evidence(recipe: Recipe, file: str) -> dict[str, Any]:
    """The gate of an earlier bundle.

    Raises:
        ConfigError: it cannot be read, or is of another recipe.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.sim.gate import check_evidence

    try:
        found: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        own = str(found["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"--evidence {file} is no gate.json; give evidence/gate.json of a bundle") from None
    check_evidence(recipe, own, f"--evidence {file}")
    return found


def check_rehearsal(model: Path) -> None:
    """Refuse a model that the launchers could not load, before the hours that come before the rehearsal.

    Raises:
        ConfigError: it is no folder of a model of the supported kind.
    """
    from firstorder.backends.folder import read_shape
    from firstorder.core.errors import ConfigError

    try:
        read_shape(model)
    except ConfigError as error:
        raise ConfigError(f"--rehearse {model}: {error}") from None
    for wanted in ("tokenizer.json", "*.safetensors"):
        if not any(model.glob(wanted)):
            raise ConfigError(f"--rehearse {model} holds no {wanted}; give a folder of `firstorder coldstart`")


def tried(recipe: Recipe, target: Target, folder: Path) -> dict[str, Any]:
    """The gate as plain numbers; the runs behind it stay in `folder`."""
    from firstorder.sim.gate import judge

    return judge(recipe, target, folder).json()


def collapsed(gate: dict[str, Any]) -> float:
    """Share of the twin's seeds that collapsed."""
    from firstorder.sim.gate import SELF

    return float(gate["trials"][SELF]["collapsed"]["value"])


def remarks(recipe: Recipe, where: Plan, moved: Step) -> list[str]:
    """What a reader must not miss: parts that cannot act, and a host memory that full-length rollouts would fill."""
    from firstorder.core.recipe import inert_parts

    notes = [f"Inert: {line}." for line in inert_parts(recipe, stale=recipe.schedule.minibatches > 1)]
    if moved.host > where.gpu.host:
        share = where.gpu.host / moved.host
        notes.append(
            f"Routes of a rollout fit into the host memory of a node while responses are on average shorter than "
            f"{share:.0%} of the longest."
        )
    return notes


def contents(
    recipe: Recipe,
    content: bytes,
    where: Plan,
    moved: Step,
    found: Dry,
    gate: dict[str, Any],
    notes: list[str],
    *,
    sections: tuple[Torchtitan, Vllm, TaskSettings],
) -> dict[str, bytes]:
    """The files of a bundle but for figures, rehearsal and manifest."""
    from firstorder.backends.promote import bundle, readme
    from firstorder.core.record import to_json

    name = recipe.about.name
    texts = bundle.launchers(name, where, sections[1]) | {
        "engines.toml": bundle.settings(*sections, where),
        "environment.lock": bundle.lock(),
        "README.md": readme.readme(name, where, moved, found, gate, notes),
        "evidence/gate.json": to_json(gate),
        "evidence/dryrun.json": to_json(readme.plain(where, moved, found)),
    }
    return {"recipe.toml": content} | {file: text.encode() for file, text in texts.items()}


def write(
    out: Path, files: dict[str, bytes], work: Path, recipe: Recipe, rehearsed: str | None, gate: dict[str, Any]
) -> None:
    """Write the bundle whole, after its launchers have run if a rehearsal was asked for.

    Raises:
        ConfigError: the rehearsal fails, or the folder cannot be written; nothing is left behind.
    """
    from firstorder import __version__
    from firstorder.backends.promote import bundle
    from firstorder.backends.promote.rehearse import rehearse
    from firstorder.core.record import to_json, whole_folder

    with whole_folder(out) as partial:
        for name, content in (files | figures(work / "gate")).items():
            file = partial / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            if file.suffix == ".sh":
                file.chmod(0o755)
        if rehearsed is not None:
            typer.echo("rehearsal: the bundle's launchers on a small model", err=True)
            acted = rehearse(partial, Path(rehearsed), recipe, work)
            (partial / "evidence/rehearsal.json").write_text(to_json(acted), encoding="utf-8")
        about = {"schema": SCHEMA, "version": __version__, "recipe": gate["recipe"], "stable": gate["stable"]}
        hashes = bundle.manifest(partial)
        (partial / "manifest.json").write_text(to_json(about | {"sha256": hashes}), encoding="utf-8")


def figures(runs: Path) -> dict[str, bytes]:
    """Figures of the twin and its neighbours with their data, and their logs, by file name; none of reused evidence.

    Without matplotlib there are the logs alone.
    """
    from importlib.util import find_spec

    cells = sorted((runs / "cells").glob("*"))
    found = {
        f"evidence/runs/{cell.name}/{file.name}": file.read_bytes()
        for cell in cells
        for file in sorted(cell.iterdir())
        if file.is_file()
    }
    if cells and find_spec("matplotlib") is not None:
        from .reporting.files import run_report
        from .reporting.runs import read_runs

        found |= {f"evidence/report/{name}": data for name, data in run_report(read_runs(cells)).items()}
    return found


def show(where: Plan, moved: Step, found: Dry, gate: dict[str, Any], notes: list[str]) -> None:
    """Shardings, memory, time and evidence on standard output."""
    from rich.console import Console
    from rich.table import Table

    from firstorder.backends.promote.dry import PARTS, layers_folded
    from firstorder.backends.promote.hardware import GIB

    console = Console()
    table = Table(title="shardings", title_justify="left", box=None, header_style="bold")
    for column in ("parameter", "whole", "local", "mesh", "placement"):
        table.add_column(column)
    for one in layers_folded(found.shardings):
        table.add_row(one["name"], *(", ".join(map(str, one[key])) for key in ("whole", "local", "mesh", "placements")))
    console.print(table)
    held = ", ".join(f"{part} {found.memory[part] / GIB:.2f}" for part in PARTS)
    lines = {
        "trainer": f"{found.peak / GIB:.1f} of {where.gpu.usable / GIB:.1f} GiB a GPU ({held}); on a small model the "
        f"estimate is {found.error:+.2%} off",
        "rollout": f"{where.engines} engines, KV cache {where.kv_cache / GIB:.1f} GiB, {where.sequences} full "
        "responses together",
        "routes": f"at most {moved.routes / GIB:.1f} GiB a step on the wire",
        "step": f"at most {moved.tokens:,} tokens in {moved.seconds:,.0f} s at stated rates",
        "dry run": f"{found.seconds:.0f} s of a processor, {found.resident / GIB:.2f} GiB",
        "gate": f"{'stable' if gate['stable'] else 'UNSTABLE'}, {collapsed(gate):.0%} of seeds collapse; safest: "
        f"{gate['safest']}",
    }
    for name, line in lines.items():
        console.print(f"{name}: {line}", highlight=False, soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", style="yellow", highlight=False, soft_wrap=True)


def _mean(values: list[Any]) -> float:
    flat = [float(each) for value in values for each in (value if isinstance(value, list) else [value])]
    return sum(flat) / max(1, len(flat))
