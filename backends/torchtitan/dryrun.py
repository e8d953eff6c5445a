"""One update of a large model over many ranks, on a machine that has neither: meta tensors, fake ranks, fake tensors.

The model, its layout, its replaying routers, loss, clipping and optimizer are those of a run. What is read off are the
shardings of every parameter and the bytes that a rank holds. Four things are assumed: experts take equally many
tokens, rows are full, attention is a fused kernel, which holds its output and its log-sum-exp, and so are norms.

    CUDA_VISIBLE_DEVICES= python -m firstorder.backends.torchtitan.dryrun < specification.json > report.json

Shapes: R packed rows, P positions of a row, M MoE layers, K experts a token.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor

from firstorder.backends.folder import Shape
from firstorder.core import memory
from firstorder.core.errors import ConfigError, FirstOrderError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import token_weights
from firstorder.core.method.terms import entropy_weights, total_loss
from firstorder.core.routing import Replay
from firstorder.core.runs.files import to_json
from firstorder.core.settings.toml import build
from firstorder.core.training import replay as replays

from . import adapter, model
from .config import Torchtitan
from .ledger import Ledger
from .replay import Recorded, recording, replaying
from .trainer import optimizer

distributed: Any = torch.distributed
Note = Callable[[str], None]
SMALL = Shape(
    vocab_size=2048,
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    moe_intermediate_size=64,
    num_experts=8,
    num_experts_per_tok=2,
    rope_theta=10000.0,
    max_position_embeddings=256,
)
"""The model that the estimate is checked on."""
MICROBATCHES = 2  # the last finds gradients of those before it


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a parameter is laid out: sizes of the whole and of a rank's part, and the placement on each mesh axis."""

    name: str
    whole: tuple[int, ...]
    local: tuple[int, ...]
    mesh: tuple[str, ...]
    placements: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainerMemory:
    """Bytes of a rank at the peak of an update.

    Args:
        parameters, gradients, optimizer: of the rank's shards.
        reference: of the rank's shards of the reference policy; 0 without one.
        buffers: tables of rotary embeddings.
        activations: what backward needs of the layers, at the end of forward.
        logits: the rest of the peak: logits, their log-softmax and gradient, layers gathered by FSDP, temporaries.
    """

    parameters: int
    reference: int
    buffers: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def peak(self) -> int:
        """The sum."""
        return sum(asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a dry run found; the `seconds` of a processor that it took, and the `resident` bytes at most."""

    num_ranks: int
    shardings: tuple[Sharding, ...]
    memory: TrainerMemory
    seconds: float
    resident: int


def dry_run(shape: Shape, settings: Torchtitan, recipe: Recipe, num_ranks: int, *, gpu: bool = True) -> Report:
    """Build a model on meta, lay it out over fake ranks and run one update under fake tensors.

    The process must have no process group; a fake one stands in for it while this runs.

    Args:
        shape: of the model; no weights are read.
        settings: the `[torchtitan]` section.
        recipe: its replay, weights and optimizer.
        num_ranks: of the trainer.
        gpu: estimate what a GPU's norms allocate, and not a CPU's.

    Raises:
        ConfigError: the layout does not fit the ranks, or the dtype has no fake kernel.
    """
    started = time.process_time()
    if settings.dtype != "bfloat16":
        raise ConfigError(
            f"a dry run covers only torchtitan.dtype = bfloat16, got {settings.dtype}; set torchtitan.dtype = bfloat16"
        )
    adapter.dist_utils.init_fake_mode(num_ranks)
    try:
        with adapter.fused_norms() if gpu else nullcontext():  # before the layout, which binds what norms do
            return _dry_run(shape, settings, recipe, num_ranks, started)
    finally:
        distributed.destroy_process_group()


def _dry_run(shape: Shape, settings: Torchtitan, recipe: Recipe, num_ranks: int, started: float) -> Report:
    parallelism, dims = model.layout(settings, num_ranks)
    laid_out = model.lay_out(shape, settings, parallelism, dims)
    second = model.lay_out(shape, settings, parallelism, dims) if recipe.terms.reference_kl else None
    ledger, at = Ledger(), dict[str, int]()

    def note(moment: str) -> None:
        at[moment] = ledger.live
        at[f"{moment} peak"] = ledger.peak
        ledger.restart()

    with FakeTensorMode(allow_non_fake_inputs=True), ledger, adapter.balanced_experts():
        trained = model.materialise(laid_out)
        reference = None if second is None else model.materialise(second).requires_grad_(False)
        step(trained, optimizer(recipe.optimizer, trained), shape, settings, recipe, dims, note)
    parameters = sum(_local(p).nbytes for p in trained.parameters())
    of_reference = 0 if reference is None else sum(_local(p).nbytes for p in reference.parameters())
    gradients = sum(_local(p.grad).nbytes for p in trained.parameters() if p.grad is not None)
    activations = at["forward"] - at["begun"]
    peak = max(at["forward peak"], at["backward peak"], at["scored peak"] + gradients)
    return Report(
        num_ranks=num_ranks,
        shardings=tuple(_sharding(name, p) for name, p in trained.named_parameters()),
        memory=TrainerMemory(
            parameters=parameters,
            reference=of_reference,
            buffers=at["start"] - parameters - of_reference,
            gradients=gradients,
            optimizer=at["stepped"] - at["clipped"],
            activations=activations,
            logits=peak - at["start"] - gradients - activations,
        ),
        seconds=time.process_time() - started,
        resident=memory.peak(),
    )


def step(trained: Any, moves: Any, shape: Shape, settings: Torchtitan, recipe: Recipe, dims: Any, note: Note) -> None:
    """One scoring pass, an update of several micro-batches with the routes replayed, clipping and an optimizer step.

    Args:
        trained: the model.
        moves: its optimizer.
        shape: its sizes.
        settings: rows and positions of a micro-batch.
        recipe: replay and weights.
        dims: the meshes.
        note: called with the name of every moment that is reached.
    """
    size, device = (settings.microbatch_rows, settings.pack_length), adapter.device_type
    tokens = torch.randint(shape.vocab_size, size, device=device)
    positions = torch.arange(settings.pack_length, device=device).expand_as(tokens)
    masks = None if adapter.ON_CPU else adapter.attention_masks(trained, positions)  # a CPU's would be dense
    moves.zero_grad()
    note("start")
    gated = recipe.router_replay.gates == "replayed"
    with torch.no_grad(), recording(trained, gates=gated) as record:
        old = _scores(trained, tokens, positions, masks, entropy=True)[0]
    replay = _replay(record, recipe)
    note("scored")
    for _ in range(MICROBATCHES):
        note("begun")
        with replaying(trained, replay):
            made = _scores(trained, tokens, positions, masks, spread=recipe.terms.entropy > 0)
            note("forward")
            stats = _stats(made[0], old, *made[1:])
            bonus = entropy_weights(stats, recipe) if recipe.terms.entropy else None
            torch.autograd.backward(total_loss(stats, token_weights(stats, recipe).weight, bonus))
            del made, stats
        note("backward")
    adapter.dist_utils.clip_grad_norm_(trained.parameters(), recipe.optimizer.max_grad_norm, ep_enabled=dims.ep_enabled)
    note("clipped")
    moves.step()
    note("stepped")


def measure(shape: Shape, settings: Torchtitan, recipe: Recipe) -> int:
    """Peak bytes that the same update really allocates here, on one rank: of a GPU, if there is one.

    The model has to fit. As with `dry_run`, the process must have no process group.
    """
    num_ranks = adapter.start_process_group()
    parallelism, dims = model.layout(settings, num_ranks)
    laid_out = model.lay_out(shape, settings, parallelism, dims)
    second = model.lay_out(shape, settings, parallelism, dims) if recipe.terms.reference_kl else None

    def updates() -> Iterator[None]:
        trained = model.materialise(laid_out)
        held = None if second is None else model.materialise(second).requires_grad_(False)
        moves = optimizer(recipe.optimizer, trained)
        for _ in range(2):  # the second update finds the optimizer's state, and its kernels compiled
            step(trained, moves, shape, settings, recipe, dims, lambda moment: None)
            yield
        del held  # until here it takes its memory

    try:
        return _peak_of_host(updates()) if adapter.ON_CPU else _peak_of_gpu(updates())
    finally:
        distributed.destroy_process_group()


def _peak_of_gpu(updates: Iterator[None]) -> int:
    next(updates)
    torch.cuda.reset_peak_memory_stats()
    next(updates)
    return torch.cuda.max_memory_allocated()


def _peak_of_host(updates: Iterator[None]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in updates:
            pass
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())
    allocated = [e for e in events["traceEvents"] if e["name"] == "[memory]"]
    live = peak = 0
    for event in sorted(allocated, key=lambda e: float(e["ts"])):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


def error(recipe: Recipe, activation_checkpoint: Any) -> float:
    """How far the estimate for a small model on a CPU is from what it allocates there, as a share of the latter."""
    settings = Torchtitan(activation_checkpoint=activation_checkpoint, pack_length=256, microbatch_rows=1)
    return dry_run(SMALL, settings, recipe, 1, gpu=False).memory.peak / measure(SMALL, settings, recipe) - 1.0


def main() -> None:
    """Read a specification from standard input, write the report to standard output; a mistake is one line, code 2."""
    specification = json.load(sys.stdin)
    try:
        settings, recipe = build(Torchtitan, specification["torchtitan"]), build(Recipe, specification["recipe"])
        report = dry_run(Shape(**specification["shape"]), settings, recipe, specification["num_ranks"])
        apart = error(recipe, settings.activation_checkpoint)
    except FirstOrderError as mistake:
        sys.stderr.write(f"{mistake}\n")
        raise SystemExit(2) from None
    sys.stdout.write(to_json(asdict(report) | {"error": apart}, indent=None))


def _replay(record: Recorded, recipe: Recipe) -> Replay | None:
    """What was recorded, by the rule of the recipe."""
    if recipe.router_replay.mode == "disabled":
        return None
    assert record.ids is not None
    rules = {
        name: x if x is None else x.to(record.ids.device) for name, x in replays.rules([recipe.router_replay]).items()
    }
    return Replay(ids=record.ids, gates=record.gates, **rules)


def _scores(trained: Any, tokens: Tensor, positions: Tensor, masks: Any, **wanted: bool) -> list[Tensor]:
    """log-probs and, where they are wanted, entropies."""
    made = trained(tokens, positions=positions, attention_masks=masks, labels=tokens, **wanted)
    return [x.double() for x in made]


def _stats(logp: Tensor, old: Tensor, entropy: Tensor | None = None) -> TokenStats:
    return TokenStats(
        entropy=entropy,
        logp_theta=logp,
        logp_old=old,
        logp_mu=old,
        mask=torch.ones_like(logp, dtype=torch.bool),
        advantage=torch.ones(len(logp), dtype=torch.float64, device=logp.device),
    )


def _local(tensor: Any) -> Any:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sharding(name: str, parameter: Any) -> Sharding:
    return Sharding(
        name=name.replace("_checkpoint_wrapped_module.", ""),
        whole=tuple(parameter.shape),
        local=tuple(_local(parameter).shape),
        mesh=tuple(parameter.device_mesh.mesh_dim_names or ()),
        placements=tuple(map(str, parameter.placements)),
    )


if __name__ == "__main__":
    main()
