"""A recipe as a bundle for a cluster: evidence, settings, launchers, and a dry run without a GPU."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evidence import check_rehearsal, collapsed, read_evidence, read_source, said, tried, wanted
from .overrides import laid
from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.backends.promote.promotion import Promotion
    from firstorder.backends.tasks.config import TaskSettings
    from firstorder.backends.vllm.config import Vllm

    from .overrides import Overrides, Source

SCHEMA = "firstorder.promote/1"

log = logging.getLogger("firstorder")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PromoteResult(Result):
    """A bundle that was written, and what it rests on.

    Args:
        folder: the bundle.
        promotion: what is promoted, where it will run, and the evidence for it.
    """

    folder: Path
    promotion: Promotion

    @property
    def title(self) -> str:
        """The bundle in a line."""
        plan = self.promotion.plan
        return f"{self.folder}: {self.promotion.recipe.about.name} on {plan.num_ranks} x {plan.gpu.name}"

    def __fspath__(self) -> str:
        return str(self.folder)

    def blocks(self) -> Iterator[Table | Text]:
        """Shardings, memory, task, time, cost and evidence, and where the bundle is."""
        from rich.table import Table
        from rich.text import Text

        from firstorder.backends.promote.dry import layers_folded

        table = Table(title="shardings", title_justify="left", box=None, header_style="bold")
        for column in ("parameter", "whole", "local", "mesh", "placement"):
            table.add_column(column)
        for one in layers_folded(self.promotion.dry_run.shardings):
            lists = (", ".join(map(str, one[key])) for key in ("whole", "local", "mesh", "placements"))
            table.add_row(one["name"], *lists)
        yield table
        for name, line in self._lines().items():
            yield Text(f"{name}: {line}", no_wrap=True)
        for note in self.promotion.notes:
            yield Text(f"note: {note}", style="yellow", no_wrap=True)
        yield Text(self.title, no_wrap=True)

    def records(self) -> list[dict[str, Any]]:
        """A row for each trial: share of collapsed seeds and final reward with their intervals, worst exact errors."""
        return [
            {"trial": name}
            | {
                f"{key}{end}": trial[key][part]
                for key in ("collapsed", "final_j_pi")
                for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
            | {f"worst_{key}": value for key, value in trial["worst"].items()}
            for name, trial in self.promotion.gate["trials"].items()
        ]

    def plot(self) -> Figure:
        """Collapsed seeds and final reward of the recipe's twin and of its neighbours, with 95% intervals."""
        require_matplotlib()
        from firstorder.cli.report.bars import Bar, bars

        trials = self.promotion.gate["trials"].items()
        titles = {"collapsed": "collapsed [share of seeds]", "final_j_pi": "final J of π [reward]"}
        return bars(
            {
                title: [
                    Bar(label=name, value=each[key]["value"], low=each[key]["low"], high=each[key]["high"])
                    for name, each in trials
                ]
                for key, title in titles.items()
            }
        )

    def _lines(self) -> dict[str, str]:
        """What a reader wants to know, each under its head."""
        from firstorder.backends.promote.dry import PARTS
        from firstorder.backends.promote.hardware import GIB

        promotion = self.promotion
        plan, step, timing, task = promotion.plan, promotion.step, promotion.timing, promotion.task
        dry_run, gate = promotion.dry_run, promotion.gate
        parts = ", ".join(f"{part} {dry_run.memory[part] / GIB:.2f}" for part in PARTS)
        return {
            "trainer": f"{dry_run.peak / GIB:.1f} of {plan.gpu.usable / GIB:.1f} GiB a GPU ({parts}); on a small model "
            f"the estimate is {dry_run.error:+.2%} off",
            "rollout": f"{plan.engines} engines, KV cache {plan.kv_cache / GIB:.1f} GiB, {plan.sequences} full "
            "responses together",
            "routes": f"at most {step.routes / GIB:.1f} GiB a step on the wire",
            "step": f"at most {step.tokens:,} tokens in {step.seconds:,.0f} s at stated rates",
            "task": " ".join([task.kind, *([task.dataset] if task.kind == "reasoning-gym" else []), *task.files]),
            "run": f"at most {timing.total / 3600:,.0f} h and {timing.gpu_hours:,.0f} GPU-hours: {timing.steps:,} "
            f"steps, all responses as long as they may be, {timing.gpus} GPUs; saved every {timing.lost / 60:,.0f} min",
            "dry run": f"{dry_run.seconds:.0f} s of a processor, {dry_run.resident / GIB:.2f} GiB",
            **said(gate),
        }


def promote(
    source: Source,
    overrides: Overrides = (),
    *,
    world: int,
    out: str | os.PathLike[str],
    gpu: str = "h100",
    match: str | os.PathLike[str] | None = None,
    horizon: int | None = None,
    evidence: str | os.PathLike[str] | None = None,
    rehearse: str | os.PathLike[str] | None = None,
    account: str | None = None,
    partition: str | None = None,
    time: str | None = None,
    force: bool = False,
    **sections: Any,
) -> PromoteResult:
    """Turn a recipe into a bundle for a cluster: evidence, settings, launchers, and a dry run without a GPU.

    Args:
        source: a run folder, a shipped recipe, a TOML file, or a recipe.
        overrides: settings of `[torchtitan]`, `[vllm]` and `[task]` by dotted key.
        world: GPUs of the trainer.
        out: a new or empty folder for the bundle.
        gpu: of every node: a100-80gb, h100, h200, b200.
        match: a run of this recipe on real engines, whose KL and flip rate are taken.
        horizon: tokens of a response in the simulator's trial; None for those of the longest response, as far as the
            trial reaches.
        evidence: the gate.json of an earlier bundle, in place of another trial.
        rehearse: a small model, on which the bundle's launchers run for a step.
        account, partition, time: of a SLURM job; placeholders unless given.
        force: promote a recipe that the simulator shows unstable.
        sections: keys of a section, `task={"kind": "sums"}`.

    Raises:
        ConfigError: a setting, the evidence or the folder is refused, or the recipe is unstable; nothing is written.
    """
    from firstorder.backends.extras import require
    from firstorder.backends.promote import dry, models, plan, timing
    from firstorder.backends.promote.hardware import gpu as known_gpu
    from firstorder.backends.promote.promotion import Job, Promotion
    from firstorder.core.errors import ConfigError
    from firstorder.core.runs.files import check_folder

    settings = laid(overrides, sections, simulated=False)
    match, evidence, rehearse = (None if each is None else os.fspath(each) for each in (match, evidence, rehearse))
    content, recipe, given = read_source(source)
    check_folder(Path(out))
    card = known_gpu(gpu)
    shape = models.shape_of()
    job = Job(**{key: value for key, value in (("account", account), ("partition", partition)) if value is not None})
    allotted = None if time is None else timing.seconds(time)
    titan, vllm, task = models.engines(settings, given)
    where = plan.plan(shape, recipe, titan, vllm, world, card)
    moved = plan.step(shape, recipe, titan, vllm, where)
    titan, vllm = timing.patient(titan, vllm, moved, [key for key, _ in settings])
    whole = timing.timing(recipe, titan, where, moved, allotted)
    target = wanted(recipe, match)
    gate = None if evidence is None else read_evidence(recipe, evidence)
    if rehearse is not None:
        check_rehearsal(Path(rehearse))
    require("torchtitan")
    log.info("dry run: %d layers over %d ranks", shape.num_hidden_layers, world)
    dry_run = dry.dry_run(shape, titan, recipe, world)
    if dry_run.peak > card.usable:
        plan.check_memory(dry_run.peak, dry.per_position(shape, titan, recipe, world, dry_run.peak), titan, card)
    with tempfile.TemporaryDirectory(prefix="firstorder-") as work:
        if gate is None:
            log.info("gate: the recipe's twin in the simulator, and its neighbours if it is unstable")
            gate = tried(recipe, target, Path(work, "gate"), spoken(vllm, task), horizon)
        if not gate["stable"] and not force:
            remedy = f"change {gate['remedy']}" if gate["remedy"] else "change more than one part"
            raise ConfigError(
                f"the simulator shows {recipe.about.name} unstable ({collapsed(gate):.0%} of its seeds collapse); "
                f"{gate['cause']}; {remedy}, or give --force"
            )
        promotion = Promotion(
            recipe=recipe,
            source=content,
            shape=shape,
            titan=titan,
            vllm=vllm,
            task=task,
            plan=where,
            step=moved,
            timing=whole,
            dry_run=dry_run,
            gate=gate,
            job=job,
        )
        manifest = write(Path(out), promotion, Path(work), rehearse)
    document = manifest | {"gate": gate, "notes": promotion.notes}
    return PromoteResult(document=document, folder=Path(out), promotion=promotion)


def spoken(vllm: Vllm, task: TaskSettings) -> int:
    """Tokens that the policy says in its longest response, all turns together."""
    return vllm.max_tokens * (task.turns if task.kind == "guess" else 1)


def write(out: Path, promotion: Promotion, work: Path, rehearsed: str | None) -> dict[str, Any]:
    """Write the bundle whole, after its launchers have run if a rehearsal was asked for; returns its manifest.

    Raises:
        ConfigError: the rehearsal fails, or the folder cannot be written; nothing is left behind.
    """
    from firstorder import __version__
    from firstorder.backends.promote import bundle
    from firstorder.backends.promote.rehearse import rehearse
    from firstorder.core.runs.files import to_json, whole_folder

    with whole_folder(out) as partial:
        for name, content in (bundle.contents(promotion) | figures(work / "gate")).items():
            file = partial / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            if file.suffix == ".sh":
                file.chmod(0o755)
        if rehearsed is not None:
            log.info("rehearsal: the bundle's launchers on a small model")
            rehearsal = rehearse(partial, Path(rehearsed), promotion.recipe, work)
            (partial / "evidence/rehearsal.json").write_text(to_json(rehearsal), encoding="utf-8")
        gate = promotion.gate
        about = {"schema": SCHEMA, "version": __version__, "recipe": gate["recipe"], "stable": gate["stable"]}
        manifest = about | {"sha256": bundle.manifest(partial)}
        (partial / "manifest.json").write_text(to_json(manifest), encoding="utf-8")
    return manifest


def figures(runs: Path) -> dict[str, bytes]:
    """Figures of the twin and its neighbours with their data, and their logs, by file name; none of reused evidence.

    Without matplotlib there are the logs alone.
    """
    from importlib.util import find_spec

    cells = sorted((runs / "cells").glob("*"))
    files = {
        f"evidence/runs/{cell.name}/{file.name}": file.read_bytes()
        for cell in cells
        for file in sorted(cell.iterdir())
        if file.is_file()
    }
    if cells and find_spec("matplotlib") is not None:
        from firstorder.cli.report.files import run_report
        from firstorder.cli.report.runs import read_runs

        files |= {f"evidence/report/{name}": data for name, data in run_report(read_runs(cells)).items()}
    return files
