"""`firstorder promote`: evidence, a dry run, and a folder that a cluster can run."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from firstorder.cli.progress import shown

if TYPE_CHECKING:
    from firstorder.backends.folder import Shape
    from firstorder.backends.promote.bundle import Job
    from firstorder.backends.promote.dry import Dry
    from firstorder.backends.promote.plan import Plan, Step
    from firstorder.backends.promote.timing import Timing
    from firstorder.backends.tasks.config import TaskSettings
    from firstorder.backends.torchtitan.config import Torchtitan
    from firstorder.backends.vllm.config import Vllm
    from firstorder.core.method.recipe import Recipe
    from firstorder.sim.trials.gate import Target

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
    account: str | None = typer.Option(None, "--account", help="That SLURM charges; a placeholder unless given."),
    partition: str | None = typer.Option(None, "--partition", help="Of SLURM's nodes; a placeholder unless given."),
    time: str | None = typer.Option(
        None, "--time", metavar="TIME", help="That a SLURM job may take, as 24:00:00; a placeholder unless given."
    ),
    force: bool = typer.Option(False, "--force", help="Promote a recipe that the simulator shows unstable."),
) -> None:
    """Turn a recipe into a bundle for a cluster: evidence, settings, launchers, and a dry run without a GPU."""
    from firstorder.backends.extras import require
    from firstorder.backends.promote import dry, models, plan, timing
    from firstorder.backends.promote.bundle import Job
    from firstorder.backends.promote.hardware import gpu as named
    from firstorder.core.errors import ConfigError
    from firstorder.core.runs.files import check_folder

    content, recipe, given = read_source(source)
    check_folder(Path(out))
    card = named(gpu)
    shape = models.shape_of()
    job = Job(**{key: value for key, value in (("account", account), ("partition", partition)) if value is not None})
    allotted = None if time is None else timing.seconds(time)
    titan, vllm, task = models.engines(set_, given)
    where = plan.plan(shape, recipe, titan, vllm, world, card)
    moved = plan.step(shape, recipe, titan, vllm, where)
    titan, vllm = timing.patient(titan, vllm, moved, set_)
    whole = timing.timing(recipe, titan, where, moved, allotted)
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
        notes = [*remarks(recipe, where, moved, whole), *([] if gate["stable"] else ["Promoted with --force."])]
        sections = titan, vllm, task
        files = contents(recipe, content, shape, where, moved, whole, found, gate, notes, sections=sections, job=job)
        with shown("bundle"):
            write(Path(out), files, Path(work), recipe, rehearse, gate)
    show(where, moved, whole, task, found, gate, notes)
    typer.echo(f"{out}: {recipe.about.name} on {world} x {card.name}")


def read_source(source: str) -> tuple[bytes, Recipe, dict[str, Any]]:
    """What is promoted as TOML, resolved; the recipe in it; and its `[task]` section, which may be empty.

    Raises:
        ConfigError: there is none.
    """
    from firstorder.cli.api.compose import split
    from firstorder.cli.api.recipes import resolve
    from firstorder.core.settings.toml import dump

    resolved = resolve(str(Path(source) / "config.toml") if Path(source).is_dir() else source)
    recipe, sections = split(resolved)
    return dump(resolved).encode(), recipe, sections["task"]


def wanted(recipe: Recipe, match: str | None) -> Target:
    """The discrepancy that the simulated engines get: published, or that of a run of the same method.

    Raises:
        ConfigError: it is no run, one of another recipe, or one whose engines agree.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.core.method.recipe import fingerprint
    from firstorder.core.runs.logs import whole
    from firstorder.sim.trials.gate import PUBLISHED, check_evidence

    if match is None:
        return PUBLISHED
    if not Path(match, "metrics.jsonl").is_file():
        raise ConfigError(f"--match {match} holds no metrics.jsonl; give the folder of a run")
    _, ran, _ = read_source(match)
    check_evidence(recipe, fingerprint(ran), f"--match {match}")
    lines = whole(Path(match, "metrics.jsonl"), 0, "resume that run, or give another")
    if not all(isinstance(line.get(key), float) for line in lines for key in ("kl", "route/flip_rate")):
        raise ConfigError(f"--match {match} logs no kl or route/flip_rate; give another run")
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
    from firstorder.sim.trials.gate import check_evidence

    try:
        if Path(file).exists() and not Path(file).is_file():  # a device is read without end, until the memory is full
            raise OSError("not a file")
        found: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        own = str(found["recipe"])
        collapsed(found), bool(found["stable"]), str(found["safest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
    from firstorder.sim.trials.gate import judge

    return judge(recipe, target, folder).json()


def collapsed(gate: dict[str, Any]) -> float:
    """Share of the twin's seeds that collapsed."""
    from firstorder.sim.trials.gate import SELF

    return float(gate["trials"][SELF]["collapsed"]["value"])


def remarks(recipe: Recipe, where: Plan, moved: Step, whole: Timing) -> list[str]:
    """What a reader must not miss: inert parts, host memory that full-length rollouts would fill, long steps."""
    from firstorder.backends.promote.timing import LOST
    from firstorder.core.training.inert import inert_parts

    notes = [f"Inert: {line}." for line in inert_parts(recipe, stale=recipe.schedule.minibatches > 1)]
    if moved.host > where.gpu.host:
        share = where.gpu.host / moved.host
        notes.append(
            f"Routes of a rollout fit into the host memory of a node while responses are on average shorter than "
            f"{share:.0%} of the longest."
        )
    if whole.step > LOST:
        notes.append(f"A step takes up to {whole.step / 60:.0f} min, so a kill without notice loses as much.")
    return notes


def contents(
    recipe: Recipe,
    content: bytes,
    shape: Shape,
    where: Plan,
    moved: Step,
    whole: Timing,
    found: Dry,
    gate: dict[str, Any],
    notes: list[str],
    *,
    sections: tuple[Torchtitan, Vllm, TaskSettings],
    job: Job,
) -> dict[str, bytes]:
    """The files of a bundle but for figures, rehearsal and manifest."""
    from firstorder.backends.promote import bundle, environment, readme
    from firstorder.core.runs.files import to_json

    name, wheel = recipe.about.name, environment.wheel_name()
    about = readme.readme(name, where, moved, whole, found, gate, notes, sections=sections, wheel=wheel)
    texts = bundle.launchers(name, where, moved, whole, sections[1], job) | {
        "engines.toml": bundle.settings(*sections, where),
        "environment.lock": environment.lock(),
        "README.md": about,
        "evidence/gate.json": to_json(gate),
        "evidence/dryrun.json": to_json(readme.plain(shape, where, moved, whole, found)),
    }
    written = {file: text.encode() for file, text in texts.items()}
    return {"recipe.toml": content, wheel: environment.wheel()} | written


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
    from firstorder.core.runs.files import to_json, whole_folder

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
        from firstorder.cli.report.files import run_report
        from firstorder.cli.report.runs import read_runs

        found |= {f"evidence/report/{name}": data for name, data in run_report(read_runs(cells)).items()}
    return found


def show(
    where: Plan, moved: Step, whole: Timing, task: TaskSettings, found: Dry, gate: dict[str, Any], notes: list[str]
) -> None:
    """Shardings, memory, task, time, cost and evidence on standard output."""
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
        "task": " ".join([task.kind, *([task.dataset] if task.kind == "reasoning-gym" else []), *task.files]),
        "run": f"at most {whole.total / 3600:,.0f} h and {whole.gpu_hours:,.0f} GPU-hours: {whole.steps:,} steps, all "
        f"responses as long as they may be, {whole.gpus} GPUs; saved every {whole.lost / 60:,.0f} min",
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
