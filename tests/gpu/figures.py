"""Figures of the trainer on one GPU, without vLLM: `make bench-gpu` writes them to tests/records/gpu.json.

Every part runs in a process of its own, which has the GPU's memory to itself, and under a limit of its own; a part that
fails leaves its last lines in the record. Times are by the clock, with the device synchronised before and after, and
everything is compiled before it is timed. After the name of the record, beginnings of names of parts run those alone.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks/engines")]
os.environ.setdefault("LOCAL_RANK", "0")  # torchtitan's own trainer asks for it

import torch  # noqa: E402

from firstorder.backends.folder import Shape  # noqa: E402
from firstorder.core.method.recipe import Recipe  # noqa: E402
from firstorder.core.routing import Replay  # noqa: E402
from firstorder.core.settings import toml  # noqa: E402

LARGE = "qwen3-30b-a3b"  # with fewer layers
RECIPE = "qwen3-30b-a3b-r3-n2"
ROUNDS = 10
LIMITS = {"card": 60, "memory": 240, "steps": 240, "estimate": 120}  # seconds of a part


def card() -> dict:
    """The GPU, and two rates that its data sheet states: bfloat16 products, and bytes read and written by a copy."""
    found = torch.cuda.get_device_properties(0)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    multiply = statistics.median(seconds(lambda: a @ b) for _ in range(12))
    copy = statistics.median(seconds(lambda: target.copy_(source)) for _ in range(12))
    return {
        "name": found.name,
        "memory": found.total_memory,
        "driver": driver.strip().splitlines()[0],
        "matrix FLOP/s": 2 * 8192**3 / multiply,
        "copy bytes/s": 2 * source.nbytes / copy,
    }


def steps(shape: Shape | None = None, length: int = 32_768) -> dict:
    """Updates in turns: routes live and replayed, weights of token and sequence scope, and torchtitan's own Trainer.

    The model has two layers of the large one and a smaller vocabulary, so that two trainers fit with whole logits.
    """
    from stock import labelled, stock_trainer

    from firstorder.backends.torchtitan.packing import pack

    shape, settings = shape or replace(large(2), vocab_size=32_768), settings_of(None, 1, length)
    ours = opened(shape, settings, recipe("minirl"))
    sequence = copy.copy(ours)  # the same model and optimizer
    sequence.recipe = recipe("gspo")
    batch = responses(shape, 1, length)
    live = ours.score(batch)
    batch, routes = scored(batch, live), flipped(live.routes, shape)
    stock = stock_trainer(shape, settings, ours.recipe)
    tokens = labelled(pack(batch.tokens, batch.lengths, length))
    found = in_turns(
        {
            "torchtitan": lambda: stock.train_step(tokens),
            "token scope": partial(update, ours, batch, None),
            "token scope, R3": partial(update, ours, batch, routes),
            "sequence scope": partial(update, sequence, batch, None),
            "score": lambda: ours.score(batch),
        }
    )
    return {"shape": asdict(shape), "tokens": length} | found


def memory(layers: int, length: int, recompute: str, chunks: int, shape: Shape | None = None, rows: int = 2) -> dict:
    """The trainer on one GPU with `layers` layers of the large model: bytes at the peak, and seconds of its passes."""
    from firstorder.backends.torchtitan import dryrun

    shape = shape or large(layers)
    changes = {"activation_checkpoint": recompute, "loss_chunks": chunks}
    settings = settings_of(None, 1, length).model_copy(update=changes)
    ours = opened(shape, settings, recipe(RECIPE))
    batch = responses(shape, rows, length)
    live = ours.score(batch)
    batch, routes = scored(batch, live), live.routes
    update(ours, batch, routes)  # everything is compiled, and the optimizer has its state
    held = torch.cuda.memory_allocated()
    found = {name: [] for name in ("score", "score R3", "update")}
    calls = (
        lambda: ours.score(batch),
        lambda: ours.score(batch, Replay(ids=routes)),
        lambda: update(ours, batch, routes),
    )
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        for name, call in zip(found, calls, strict=True):
            found[name].append(seconds(call))
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    free, total = torch.cuda.mem_get_info()
    moments = {}

    def note(moment: str) -> None:
        torch.cuda.synchronize()
        moments[moment] = {
            "live": torch.cuda.memory_allocated(),
            "peak": torch.cuda.max_memory_allocated(),
            "at": time.perf_counter(),
        }
        torch.cuda.reset_peak_memory_stats()

    dryrun.step(ours.model, ours.optimizer, shape, settings, ours.recipe, ours._dims, note)
    return {
        "layers": layers,
        "length": length,
        "activation_checkpoint": recompute,
        "loss_chunks": chunks,
        "tokens": rows * length,
        "held": held,
        "peak": peak,
        "reserved": reserved,
        "outside torch": total - free - torch.cuda.memory_reserved(),
        "seconds": found,
        "moments": moments,
    }


def estimate(layers: int, length: int, recompute: str, chunks: int) -> dict:
    """What a dry run expects of the same layout: bytes, and the FLOP of a forward for a token."""
    from firstorder.backends.promote import plan
    from firstorder.backends.promote.dry import dry_run

    settings = settings_of(None, 1, length).model_copy(
        update={"activation_checkpoint": recompute, "loss_chunks": chunks}
    )
    found = dry_run(large(layers), settings, recipe(RECIPE), 1)
    return {"peak": found.peak, "memory": found.memory, "FLOP": plan.forward_flops(large(layers), length)}


def seconds(call) -> float:
    """By the clock."""
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(calls: dict) -> dict:
    """Medians and quartiles of seconds, and of the ratios to the first call."""
    for call in calls.values():
        call()
    spent = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            spent[name].append(seconds(call))
    first = next(iter(spent.values()))
    ratios = {name: [a / b for a, b in zip(times, first, strict=True)] for name, times in spent.items()}
    return {
        "seconds": {name: statistics.quantiles(times, n=4) for name, times in spent.items()},
        "ratios": {name: statistics.quantiles(values, n=4) for name, values in ratios.items()},
    }


def recipe(name: str) -> Recipe:
    return toml.build(Recipe, toml.read(name))


def large(layers: int) -> Shape:
    from firstorder.backends.promote import models

    return replace(models.shape_of(LARGE), num_hidden_layers=layers)


def settings_of(folder, rows: int, length: int):
    from firstorder.backends.torchtitan.config import Torchtitan

    return Torchtitan(model=str(folder or ""), pack_length=length, microbatch_rows=rows)


def opened(shape: Shape, settings, of: Recipe):
    """A trainer whose weights stay random: what a folder would hold does not change a byte or a second."""
    from firstorder.backends.torchtitan import model, trainer

    trainer.read_shape, trainer.open_weights = lambda folder: shape, lambda *_: None
    model.HuggingFace.read = lambda self, weights: None
    with tempfile.TemporaryDirectory() as scratch:
        return trainer.Trainer(settings, of, 1.0, Path(scratch))


def responses(shape: Shape, rows: int, length: int):
    """Responses that fill their rows."""
    from firstorder.core.training.batch import RolloutBatch

    g = torch.Generator().manual_seed(0)
    return RolloutBatch(
        tokens=torch.randint(2, shape.vocab_size, (rows, length), generator=g),
        mask=(torch.arange(length) >= length // 8).expand(rows, length),
        lengths=torch.full((rows,), length),
        logp_mu=torch.zeros(rows, length, dtype=torch.float64),
        rewards=torch.rand(rows, generator=g, dtype=torch.float64),
        groups=torch.zeros(rows, dtype=torch.int64),
    )


def scored(batch, scores):
    """The same responses, sampled by the policy that scored them."""
    return replace(batch, logp_mu=scores.logp.where(batch.mask, 0.0))


def flipped(routes, shape: Shape):
    """Another engine's routes: a tenth of the rows have other experts."""
    chosen = (torch.rand(routes.shape[:-1], generator=torch.Generator().manual_seed(1)) < 0.1)[..., None]
    return torch.where(chosen & (routes >= 0), (routes + 1) % shape.num_experts, routes)


def update(trainer, batch, routes) -> None:
    """One optimiser step."""
    from firstorder.core.training.arms import Arm, RecipeWeights, with_advantages
    from firstorder.core.training.backend import Scored

    arms = (Arm(recipe=trainer.recipe),)
    replay = None if routes is None else Replay(ids=routes)
    ready = with_advantages(Scored(batch=batch, logp_old=batch.logp_mu, replay=replay), arms, len(batch.tokens))
    trainer.update(ready, RecipeWeights(arms))


def part(name: str, *arguments) -> object:
    """Call a function of this file in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, name, json.dumps(arguments)]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMITS[name], check=False)
        lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or ["it said nothing"]
        found = {"failed": "\n".join(lines[-12:])} if done.returncode else json.loads(lines[-1])
    except subprocess.TimeoutExpired:
        found = {"failed": f"took more than {LIMITS[name]} s"}
    print(f"{name} {arguments}: {time.perf_counter() - started:.0f} s", json.dumps(found)[:1500], flush=True)
    return found


def layouts(memory: int) -> list:
    """Two depths of the large model, of which the second fills the card: the difference is what layers take."""
    deep = 4 if memory < 100 << 30 else 10
    return [(deep // 2, 32_768, "full", 16), (deep, 32_768, "full", 16)]


def main(out: Path, wanted: list[str]) -> None:
    """The parts that are wanted, or all, into a record that is written after every part."""
    from importlib.metadata import version

    versions = {name: version(name) for name in ("torch", "triton", "torchtitan")}
    versions |= {"cuda": torch.version.cuda, "python": platform.python_version()}
    record = json.loads(out.read_text()) if out.exists() else {}
    record["versions"] = versions
    depths = layouts(torch.cuda.get_device_properties(0).total_memory)
    runs = [("card",), *(("memory", *one) for one in depths), ("steps",)]
    runs += [("estimate", *one) for one in depths]
    for name, *arguments in runs:
        key = " ".join(map(str, (name, *arguments)))
        if not wanted or any(key.startswith(one) for one in wanted):
            record[key] = part(name, *arguments)
            out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] in LIMITS:
        print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
