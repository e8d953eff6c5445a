"""Small runs on the engines: their settings, and what they logged."""

import json

SMALL = ["schedule.steps=4", "schedule.prompts=8", "schedule.group_size=4", "optimizer.lr=1e-3"]
ENGINES = [
    *("torchtitan.dtype=float32", "torchtitan.pack_length=64", "torchtitan.checkpoint_every=1"),
    *("torchtitan.evaluate_every=2", "torchtitan.evaluate_prompts=8"),
    *("vllm.dtype=float32", "vllm.max_prompt=40", "vllm.kv_cache_mib=16", "task.kind=sums"),
]


def sets(*assignments):
    return [word for one in assignments for word in ("--set", one)]


def lines(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def trained(solver, whole, **changes):
    """The trainer of a finished run."""
    from firstorder.backends.torchtitan.config import Torchtitan
    from firstorder.backends.torchtitan.trainer import Trainer
    from firstorder.core.method.recipe import Recipe

    settings = Torchtitan(model=str(solver), dtype="float32", pack_length=64, **changes)
    made = Trainer(settings, Recipe(), 1.0, whole / "checkpoints")
    made.load(4)
    return made
