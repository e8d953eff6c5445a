"""What a bundle says about itself: README.md, and the same numbers as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from .dry import PARTS, Dry, layers_folded
from .hardware import GIB
from .plan import RATES, Plan, Step

FILES = {
    "recipe.toml": "the recipe, byte for byte",
    "engines.toml": "settings of torchtitan and vLLM, all keys",
    "settings.env": "what differs from cluster to cluster; edit it, or set the variables in the job",
    "train.sh, serve.sh": "the trainer's ranks and the rollout engines of one node",
    "job.sbatch": "SLURM: trainer nodes and vLLM nodes in one job",
    "job.yaml": "Kubernetes: the same as two indexed jobs",
    "environment.lock": "`pip install -r` of it makes the environment",
    "evidence/": "gate, dry run, figures with their data, and the rehearsal if there was one",
    "manifest.json": "versions, and SHA-256 of every file",
}
MEANING = {
    "parameters": "float32 shards",
    "buffers": "tables of rotary embeddings",
    "gradients": "float32 shards",
    "optimizer": "two moments",
    "activations": "held for the backward pass",
    "logits": "logits, their log-softmax and gradient, layers gathered by FSDP, temporaries",
}


def plain(where: Plan, moved: Step, dry: Dry) -> dict[str, Any]:
    """The dry run as plain numbers: sizes in bytes, times in seconds."""
    return {
        "plan": asdict(where) | {"engines": where.engines, "usable": where.gpu.usable},
        "rates": RATES,
        "step": asdict(moved) | {"seconds": moved.seconds},
        "trainer": dry.memory | {"peak": dry.peak, "error": dry.error},
        "shardings": dry.shardings,
        "seconds": dry.seconds,
        "resident": dry.resident,
    }


def readme(name: str, where: Plan, moved: Step, dry: Dry, gate: dict[str, Any], notes: Sequence[str]) -> str:
    """README.md of a bundle.

    Args:
        name: of the recipe.
        where, moved, dry: the plan, a step of it, and what the dry run found.
        gate: the evidence, as plain numbers.
        notes: sentences that a reader must not miss.
    """
    verdict = "stable" if gate["stable"] else "UNSTABLE, and promoted with --force"
    parts = [
        f"# {name} on {where.world} x {where.gpu.name}",
        f"{where.nodes} nodes train, {where.rollout_nodes} nodes serve {where.engines} rollout engines. "
        f"The simulator calls the recipe {verdict}.",
        *(f"- {note}" for note in notes),
        "## Run it",
        "1. Put this folder and the model where every node reads them.\n"
        "2. `python3 -m venv venv && venv/bin/pip install -r environment.lock`\n"
        "3. Set `MODEL` and `ENVIRONMENT` in `settings.env`.\n"
        "4. `sbatch job.sbatch`; or edit IMAGE and CLAIM in `job.yaml` and `kubectl apply -f job.yaml`. Kubernetes "
        "keeps the servers when training is done: delete the rollout job then.",
        "Servers do what whoever reaches their ports asks: keep those within the cluster's private network. A job that "
        "is started again goes on from the newest checkpoint.",
        table(("file", "content"), FILES.items()),
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
        table(
            ("part", "seconds"),
            [(part, f"{getattr(moved, part):.0f}") for part in ("rollout", "score", "update", "exchange", "sync")],
        ),
        f"A rank exchanges {moved.exchanged / GIB:.0f} GiB, a weight sync writes {moved.weights / GIB:.0f} GiB.",
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
