"""What a bundle says about itself: README.md, and the same numbers as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from firstorder.backends.tasks.config import TaskSettings

from .dry import PARTS as MEMORY_PARTS
from .dry import layers_folded
from .environment import wheel_name
from .hardware import GIB
from .plan import CHECKPOINTS, RATES
from .plan import PARTS as STEP_PARTS
from .promotion import Promotion
from .timing import LOST, NOTICE, SLACK, SPARE, START, clock

FILES = {
    "recipe.toml": "the recipe, resolved: all keys",
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
    "reference": "float32 shards of the reference policy, where terms.reference_kl has one",
    "buffers": "tables of rotary embeddings",
    "gradients": "float32 shards",
    "optimizer": "two moments",
    "activations": "held for the backward pass",
    "logits": "logits, their log-softmax and gradient, layers gathered by FSDP, temporaries",
}


def plain(promotion: Promotion) -> dict[str, Any]:
    """The plan and the dry run as plain numbers: sizes in bytes, times in seconds."""
    timing, plan, step, dry_run = promotion.timing, promotion.plan, promotion.step, promotion.dry_run
    return {
        "shape": vars(promotion.shape),
        "run": asdict(timing) | {"seconds": timing.total, "gpu_hours": timing.gpu_hours, "lost": timing.lost},
        "plan": asdict(plan) | {"world": plan.num_ranks, "engines": plan.engines, "usable": plan.gpu.usable},
        "rates": RATES,
        "step": asdict(step) | {"seconds": step.seconds},
        "trainer": dry_run.memory | {"peak": dry_run.peak, "error": dry_run.error},
        "shardings": dry_run.shardings,
        "seconds": dry_run.seconds,
        "resident": dry_run.resident,
    }


def readme(promotion: Promotion) -> str:
    """README.md of a bundle."""
    plan, step, dry_run, gate = promotion.plan, promotion.step, promotion.dry_run, promotion.gate
    verdict = "stable" if gate["stable"] else "UNSTABLE, and promoted with --force"
    parts = [
        f"# {promotion.recipe.about.name} on {plan.num_ranks} x {plan.gpu.name}",
        f"{plan.nodes} nodes train, {plan.rollout_nodes} nodes serve {plan.engines} rollout engines. "
        f"The simulator calls the recipe {verdict}.",
        *(f"- {note}" for note in promotion.notes),
        "## What is trained",
        *trained(promotion.task),
        "## What it takes",
        *costs(promotion),
        "## Run it",
        STEPS,
        "Servers obey whoever reaches their ports: keep those within the cluster's private network. A job that is "
        "started again resumes from the newest checkpoint.",
        table(("file", "content"), [(file.format(wheel=wheel_name()), what) for file, what in FILES.items()]),
        "## Memory of a trainer's GPU",
        table(
            ("part", "GiB", "what"),
            [(part, f"{dry_run.memory[part] / GIB:.2f}", MEANING[part]) for part in MEMORY_PARTS],
        ),
        f"Together {dry_run.peak / GIB:.1f} GiB, of {plan.gpu.usable / GIB:.1f} that are usable. For a small model on "
        f"one rank the same estimate is {dry_run.error:+.2%} off what an update really allocates. It assumes full "
        "rows, experts that take equally many tokens, and fused attention.",
        "## A rollout engine's GPU and the wire",
        f"KV cache {plan.kv_cache / GIB:.1f} GiB, {plan.sequences} responses of full length together. Routes of a "
        f"rollout are at most {step.routes / GIB:.1f} GiB on the wire and, with margins, {step.host / GIB:.0f} GiB "
        f"in the host memory of a node of the trainer, which has {plan.gpu.host / GIB:.0f}.",
        "## A step",
        f"At most {step.responses:,} responses and {step.tokens:,} tokens. Estimated, not measured, for responses as "
        "long as they may be and nothing overlapped, from the peaks of "
        f"{plan.gpu.source} and these rates: {', '.join(f'{what} {rate:g}' for what, rate in RATES.items())}.",
        table(("part", "seconds"), [(part, f"{getattr(step, part):.0f}") for part in STEP_PARTS]),
        f"A rank exchanges {step.exchanged / GIB:.0f} GiB, a weight sync writes {step.weights / GIB:.0f} GiB, a "
        f"checkpoint {step.checkpoint / GIB:.0f} GiB.",
        "## Evidence",
        _evidence(gate),
        "## Shardings",
        table(
            ("parameter", "whole", "local", "mesh", "placement"),
            [
                (f"`{s['name']}`", s["whole"], s["local"], ", ".join(s["mesh"]), ", ".join(s["placements"]))
                for s in layers_folded(dry_run.shardings)
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
step and save it. A server that dies is restarted, after a pause that doubles; one that dies `MAX_FAULTS` times in a
row, each within `STEADY` seconds of its start, ends the job with its last message. A job is queued again after a fault
or at the end of its time, unless it has saved no step since it started, and at most `MAX_RESTARTS` times. A preemption
that signals the servers too loses the step under way."""


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


def costs(promotion: Promotion) -> list[str]:
    """Time and GPU-hours of the whole run, what a kill costs, and the time-outs, with their assumptions."""
    titan, vllm, step, run = promotion.titan, promotion.vllm, promotion.step, promotion.timing
    jobs = (
        f"in {run.jobs} jobs of {clock(run.allotted)}"
        if run.allotted is not None
        else "in one job, as --time was not given"
    )
    minutes = titan.checkpoint_every * step.seconds / 60
    rows = [
        (
            "checkpoint",
            f"every {titan.checkpoint_every} steps, {minutes:,.0f} min",
            f"a kill without notice costs at most {LOST / 60:.0f} min, or a step where that is longer",
        ),
        (
            "torchtitan.timeout",
            f"{titan.timeout:,.0f} s",
            f"{SLACK:g} x a rollout of {step.rollout:,.0f} s, and vllm.timeout",
        ),
        (
            "vllm.timeout",
            f"{vllm.timeout:,.0f} s",
            f"{SLACK:g} x the longest response, {step.response:,.0f} s, and no less than a start takes",
        ),
        ("notice of SIGTERM", f"{run.notice:,} s", f"{NOTICE:g} x a step, so that it is finished and saved"),
        (
            "disk",
            f"{step.disk / GIB:,.0f} GiB",
            f"{CHECKPOINTS} checkpoints, 2 weight syncs, the trained model",
        ),
        ("starts after the first", f"{run.restarts}", f"{run.jobs - 1} by time, {SPARE} after faults"),
    ]
    return [
        f"At most **{run.total / 3600:,.0f} hours and {run.gpu_hours:,.0f} GPU-hours** of {run.gpus} GPUs, {jobs}: "
        f"{run.steps:,} steps of {run.step:,.0f} s, evaluations of {run.evaluating:,.0f} s together, and "
        f"{START:,.0f} s for the start of a job. That is for responses as long as they may be, at the rates of "
        '"A step"; shorter ones take less, and no GPU has confirmed it.',
        table(("what", "value", "follows from"), rows),
    ]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _evidence(gate: dict[str, Any]) -> str:
    target, calibration, tried = gate["target"], gate["calibration"], gate["tried"]
    rows = [
        (
            name,
            f"{trial['collapsed']['value']:.0%}",
            *(f"{trial['final_j_pi'][end]:.3f}" for end in ("value", "low", "high")),
            *(
                "none" if (worst := trial["worst"][key]) is None else f"{worst:.3g}"
                for key in ("gradient_error", "gradient_error_natural", "replay_bias")
            ),
        )
        for name, trial in gate["trials"].items()
    ]
    columns = ("trial", "collapsed", "final J", "low", "high", "gradient error", "natural", "replay bias")
    updates = (
        "exact expected updates"
        if tried["responses"] is None
        else f"updates over {tried['responses']} sampled responses, since the recipe has no exact form"
    )
    verdict = "Stable." if gate["stable"] else f"UNSTABLE. Cause: {gate['cause']}. Remedy: {gate['remedy'] or 'none'}."
    return (
        f"{verdict} Tried on responses of {tried['horizon']:,} tokens, of {tried['length']:,} that it may say, from "
        f"J = {tried['extent']['value']:g}: {tried['extent']['seeds']} seeds from {tried['extent']['first_seed']}, "
        f"{tried['extent']['updates']} {updates}. Extrapolation: {gate['extrapolation']['said']}.\n\n"
        f"Target: KL {target['kl']:.3g} nats a token, {target['flip_rate']:.1%} of routes flipped; {target['source']}. "
        f"The simulated engines have {calibration['kl']:.3g} and {calibration['flip_rate']:.1%}. Errors are exact, the "
        f"largest mean over seeds of any evaluation. Rule: {gate['rule']}."
        f"\n\n{table(columns, rows)}"
    )
