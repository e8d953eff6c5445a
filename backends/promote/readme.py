"""What a bundle says about itself: README.md, and the same numbers as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from firstorder.backends.folder import Shape
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm

from . import plan, timing
from .bundle import CHECKPOINTS, disk
from .dry import PARTS, Dry, layers_folded
from .hardware import GIB
from .plan import RATES, Plan, Step
from .timing import Timing, clock

FILES = {
    "recipe.toml": "the recipe, byte for byte",
    "engines.toml": "settings of torchtitan, vLLM and the task, all keys",
    "settings.env": "what differs from cluster to cluster; edit it, or set the variables in the job",
    "install.sh, environment.lock, {wheel}": "the environment: packages from an index, firstorder from the wheel",
    "download.sh": "the model",
    "preflight.sh": "checks a node before it starts: package versions, GPUs, model, problems, ports, disk, time left",
    "train.sh, serve.sh, node.sh": "the trainer's ranks and the rollout engines of one node, and what both do first",
    "job.sbatch, task.sh": "SLURM: trainer nodes and vLLM nodes in one job",
    "job.yaml": "Kubernetes: the same as two indexed jobs",
    "evidence/": "gate, dry run, figures with their data, and the rehearsal if there was one",
    "manifest.json": "versions, and SHA-256 of every file",
}
JUDGES = {
    "reasoning-gym": "the scorer of reasoning-gym's own data set",
    "sums": "the right sum, exactly",
    "math": "math-verify: the last box or number is equivalent to the answer",
    "code": "all unit tests pass, in a sandbox",
    "text": "ROUGE-L against the references",
    "guess": "the hidden number is found within the turns",
}
MEANING = {
    "parameters": "float32 shards",
    "buffers": "tables of rotary embeddings",
    "gradients": "float32 shards",
    "optimizer": "two moments",
    "activations": "held for the backward pass",
    "logits": "logits, their log-softmax and gradient, layers gathered by FSDP, temporaries",
}


def plain(shape: Shape, where: Plan, moved: Step, run: Timing, dry: Dry) -> dict[str, Any]:
    """The dry run as plain numbers: sizes in bytes, times in seconds."""
    return {
        "shape": vars(shape),
        "run": asdict(run) | {"seconds": run.total, "gpu_hours": run.gpu_hours, "lost": run.lost},
        "plan": asdict(where) | {"world": where.num_ranks, "engines": where.engines, "usable": where.gpu.usable},
        "rates": RATES,
        "step": asdict(moved) | {"seconds": moved.seconds},
        "trainer": dry.memory | {"peak": dry.peak, "error": dry.error},
        "shardings": dry.shardings,
        "seconds": dry.seconds,
        "resident": dry.resident,
    }


def readme(
    name: str,
    where: Plan,
    moved: Step,
    run: Timing,
    dry: Dry,
    gate: dict[str, Any],
    notes: Sequence[str],
    *,
    sections: tuple[Torchtitan, Vllm, TaskSettings],
    wheel: str,
) -> str:
    """README.md of a bundle.

    Args:
        name: of the recipe.
        where, moved, run, dry: the plan, a step of it, the whole run, and what the dry run found.
        gate: the evidence, as plain numbers.
        notes: sentences that a reader must not miss.
        sections: settings of the engines and the task.
        wheel: file name of the package.
    """
    titan, vllm, task = sections
    verdict = "stable" if gate["stable"] else "UNSTABLE, and promoted with --force"
    parts = [
        f"# {name} on {where.num_ranks} x {where.gpu.name}",
        f"{where.nodes} nodes train, {where.rollout_nodes} nodes serve {where.engines} rollout engines. "
        f"The simulator calls the recipe {verdict}.",
        *(f"- {note}" for note in notes),
        "## What is trained",
        *trained(task),
        "## What it takes",
        *costs(moved, run, titan, vllm),
        "## Run it",
        STEPS,
        "Servers do what whoever reaches their ports asks: keep those within the cluster's private network. A job that "
        "is started again goes on from the newest checkpoint.",
        table(("file", "content"), [(file.format(wheel=wheel), what) for file, what in FILES.items()]),
        "## Memory of a trainer's GPU",
        table(("part", "GiB", "what"), [(part, f"{dry.memory[part] / GIB:.2f}", MEANING[part]) for part in PARTS]),
        f"Together {dry.peak / GIB:.1f} GiB of {where.gpu.usable / GIB:.1f} usable ones. For a small model on one rank "
        f"the same estimate is {dry.error:+.2%} off what an update really allocates. It assumes full rows, experts "
        "that take equally many tokens, and fused attention.",
        "## A rollout engine's GPU and the wire",
        f"KV cache {where.kv_cache / GIB:.1f} GiB, {where.sequences} responses of full length together. Routes of a "
        f"rollout are at most {moved.routes / GIB:.1f} GiB on the wire and, with margins, {moved.host / GIB:.0f} GiB "
        f"in the host memory of a node of the trainer, which has {where.gpu.host / GIB:.0f}.",
        "## A step",
        f"At most {moved.responses:,} responses and {moved.tokens:,} tokens. Estimated, not measured, for responses as "
        "long as they may be and nothing overlapped, from the peaks of "
        f"{where.gpu.source} and these rates: {', '.join(f'{what} {rate:g}' for what, rate in RATES.items())}.",
        table(("part", "seconds"), [(part, f"{getattr(moved, part):.0f}") for part in plan.PARTS]),
        f"A rank exchanges {moved.exchanged / GIB:.0f} GiB, a weight sync writes {moved.weights / GIB:.0f} GiB, a "
        f"checkpoint {moved.checkpoint / GIB:.0f} GiB.",
        "## Evidence",
        _evidence(gate),
        "## Shardings",
        table(
            ("parameter", "whole", "local", "mesh", "placement"),
            [
                (f"`{s['name']}`", s["whole"], s["local"], ", ".join(s["mesh"]), ", ".join(s["placements"]))
                for s in layers_folded(dry.shardings)
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


STEPS = """\
1. Put this folder where every node reads and writes it.
2. `bash install.sh`, where an index of packages is reached; it makes `venv/` here. Or build an image that has run it,
   or name modules, in `settings.env`.
3. `bash download.sh`, where huggingface.co is reached; or set `MODEL` in `settings.env`.
4. SLURM: fill in what is `SET_...` in `job.sbatch`, then `sbatch job.sbatch` from this folder. Logs of the nodes are in
   `logs/`.
5. Kubernetes: replace IMAGE and CLAIM in `job.yaml`, put the model at `/bundle/model` of that volume,
   `kubectl apply -f job.yaml`. It keeps the servers when training is done: delete the rollout job then.

`preflight.sh` runs on every node first, and names what a node lacks. SIGTERM and Ctrl-C let the trainer finish its
step and save it. A server that dies is started anew, after a pause that doubles; one that dies `MAX_FAULTS` times in a
row, none of them `STEADY` seconds after its start, ends the job with what it said last. A job is queued again after a
fault or at the end of its time, unless it has saved no step since it started, and at most `MAX_RESTARTS` times. A
preemption that signals the servers too loses the step under way."""


def trained(task: TaskSettings) -> list[str]:
    """Which task, what judges it, and where its problems must lie."""
    what = f"task.kind = `{task.kind}`"
    if task.kind == "reasoning-gym":
        options = ", ".join(f"{key} = {value}" for key, value in task.options.items())
        what += f", data set `{task.dataset}`{f' with {options}' if options else ''}"
    cut = "earns 0" if task.truncated == "zero" else "is scored like any other"
    lines = [f"{what}. Judged by: {JUDGES[task.kind]}. A response that is cut at its limit {cut}."]
    if task.files:
        lines.append(
            f"Every node of the trainer must read these files of problems, of columns `{task.prompt_column}` and "
            f"`{task.answer_column}`; {task.held_out:.0%} of the problems are held out:"
        )
        lines.append("\n".join(f"- `{file}`" for file in task.files))
    return lines


def costs(moved: Step, run: Timing, titan: Torchtitan, vllm: Vllm) -> list[str]:
    """Time and GPU-hours of the whole run, what a kill costs, and the time-outs, with their assumptions."""
    jobs = (
        f"in {run.jobs} jobs of {clock(run.allotted)}"
        if run.allotted is not None
        else "in one job, as --time was not given"
    )
    return [
        f"At most **{run.total / 3600:,.0f} hours and {run.gpu_hours:,.0f} GPU-hours** of {run.gpus} GPUs, {jobs}: "
        f"{run.steps:,} steps of {run.step:,.0f} s, evaluations of {run.evaluating:,.0f} s together, and "
        f"{timing.START:,.0f} s for the start of a job. That is for responses as long as they may be, at the rates of "
        '"A step"; shorter ones take less, and no GPU has confirmed it.',
        table(
            ("what", "value", "follows from"),
            [
                (
                    "checkpoint",
                    f"every {titan.checkpoint_every} steps, {titan.checkpoint_every * moved.seconds / 60:,.0f} min",
                    f"a kill without notice costs at most {timing.LOST / 60:.0f} min, or a step where that is longer",
                ),
                (
                    "torchtitan.timeout",
                    f"{titan.timeout:,.0f} s",
                    f"{timing.SLACK:g} x a rollout of {moved.rollout:,.0f} s, and vllm.timeout",
                ),
                (
                    "vllm.timeout",
                    f"{vllm.timeout:,.0f} s",
                    f"{timing.SLACK:g} x the longest response, {moved.response:,.0f} s, and no less than a start takes",
                ),
                (
                    "notice of SIGTERM",
                    f"{run.notice:,} s",
                    f"{timing.NOTICE:g} x a step, so that it is finished and saved",
                ),
                (
                    "disk",
                    f"{disk(moved) / GIB:,.0f} GiB",
                    f"{CHECKPOINTS} checkpoints, 2 weight syncs, the trained model",
                ),
                ("starts after the first", f"{run.restarts}", f"{run.jobs - 1} by time, {timing.SPARE} after faults"),
            ],
        ),
    ]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _evidence(gate: dict[str, Any]) -> str:
    target, found = gate["target"], gate["calibration"]
    rows = [
        (
            name,
            f"{trial['collapsed']['value']:.0%}",
            *(f"{trial['final_j_pi'][end]:.3f}" for end in ("value", "low", "high")),
            *(f"{trial['worst'][key]:.3g}" for key in ("gradient_error", "gradient_error_natural", "replay_bias")),
        )
        for name, trial in gate["trials"].items()
    ]
    columns = ("trial", "collapsed", "final J", "low", "high", "gradient error", "natural", "replay bias")
    return (
        f"Target: KL {target['kl']:.3g} nats a token, {target['flip_rate']:.1%} of routes flipped; {target['source']}. "
        f"The simulated engines have {found['kl']:.3g} and {found['flip_rate']:.1%}. Errors are exact, the largest "
        f"mean over seeds of any evaluation. Rule: {gate['rule']}. Safest: {gate['safest']}.\n\n{table(columns, rows)}"
    )
