"""Run in a process without a process group: dry runs, their JSON to standard output."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from firstorder.backends.promote import models
from firstorder.backends.torchtitan import dryrun
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read

torch.set_num_threads(1)


def shipped():
    """Every recipe of the grid, one layer over 64 ranks."""
    shape = replace(models.shape_of(), num_hidden_layers=1)
    titan = models.engines([("task.kind", "sums"), ("torchtitan.pack_length", 512)])[0]
    names = [f"qwen3-30b-a3b-{mode}-n{n}" for mode in ("none", "r2", "r3") for n in (1, 2, 4, 8)]
    return {name: asdict(dryrun.dry_run(shape, titan, build(Recipe, read(name)), 64)) for name in names}


def small():
    """The small model: estimates and allocations by recomputation and length, and what two ranks and experts change."""
    recipe, found = build(Recipe, read("minirl-r3-n2")), {}
    for recompute in ("none", "full"):
        for length in (128, 256):
            titan = Torchtitan(activation_checkpoint=recompute, pack_length=length, microbatch_rows=1)
            estimate = dryrun.dry_run(dryrun.SMALL, titan, recipe, 1, gpu=False).memory.peak
            found[f"{recompute} {length}"] = [estimate, dryrun.measure(dryrun.SMALL, titan, recipe)]
    titan = Torchtitan(pack_length=256, microbatch_rows=1)
    for rule in ("total-recall", "minirl-r3-margin", "minirl-r3-condition"):
        of = build(Recipe, read(rule))
        estimate = dryrun.dry_run(dryrun.SMALL, titan, of, 1, gpu=False).memory.peak
        found[rule] = [estimate, dryrun.measure(dryrun.SMALL, titan, of)]
    titan = Torchtitan(pack_length=256, microbatch_rows=1, expert=2)
    return found | {"two ranks": asdict(dryrun.dry_run(dryrun.SMALL, titan, recipe, 2))}


def recorded():
    """The layouts whose peaks on a GPU are in the record: what is estimated, and what was allocated there."""
    record = json.loads((Path(__file__).parents[1] / "records/gpu.json").read_text())
    peaks = {(2, kind): peak for kind, peak in record["peaks of two layers, 32,768 tokens, 16 chunks"].items()}
    for one in (found for name, found in record.items() if name.startswith("memory")):
        peaks[one["layers"], one["activation_checkpoint"]] = one["moments"]["backward"]["peak"]
    recipe, found = build(Recipe, read("qwen3-30b-a3b-r3-n2")), {}
    for (layers, kind), peak in peaks.items():
        titan = Torchtitan(activation_checkpoint=kind, pack_length=32_768, microbatch_rows=1, loss_chunks=16)
        shape = replace(models.shape_of(), num_hidden_layers=layers)
        found[f"{layers} {kind}"] = [dryrun.dry_run(shape, titan, recipe, 1).memory.peak, peak]
    return found


if __name__ == "__main__":
    print(json.dumps({"shipped": shipped, "small": small, "recorded": recorded}[sys.argv[1]]()))
