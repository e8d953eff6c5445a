"""Where everything runs: ranks, nodes and rollout engines, what each holds, and how long a step takes at stated rates.

Lengths are in tokens, sizes in bytes. Times and bytes of a step are those of responses as long as they may be.
"""

from __future__ import annotations

from dataclasses import dataclass

from firstorder.backends.checks import check_degrees, check_layout, check_lengths, check_method, check_served
from firstorder.backends.folder import Shape
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe

from . import memory
from .hardware import GIB, GPUS_PER_NODE, Gpu

# shares of the peaks in `hardware` and a rate that no data sheet states: assumptions, not measurements
TRAINING = 0.30  # of FLOP/s
DECODING = 0.50  # of memory bandwidth
SHARED = 5e9  # bytes/s that a node reads from or writes to the shared folder
CHECKPOINTS = 3  # that torchtitan keeps, the newest ones
SERVING = 6 * GIB  # of a rollout engine beside weights and KV cache: activations and workspaces
RATES = {
    "training, share of peak FLOP/s": TRAINING,
    "decoding, share of memory bandwidth": DECODING,
    "shared folder, bytes/s of a node": SHARED,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What runs on which node.

    Args:
        gpu: of every node.
        num_ranks: of the trainer.
        nodes: that they fill.
        ranks_per_node: on each.
        rollout_nodes: as many as the trainer has.
        engines_per_node: rollout engines on each of those.
        kv_cache: bytes of the KV cache of an engine's GPU.
        sequences: that an engine decodes together, each as long as it may be.
    """

    gpu: Gpu
    num_ranks: int
    nodes: int
    ranks_per_node: int
    rollout_nodes: int
    engines_per_node: int
    kv_cache: int
    sequences: int

    @property
    def engines(self) -> int:
        """All rollout engines."""
        return self.rollout_nodes * self.engines_per_node


PARTS = ("rollout", "score", "update", "exchange", "sync", "probe", "save")  # of a step, one after the other


@dataclass(frozen=True, kw_only=True)
class Step:
    """One global step: what is moved, and the seconds of its parts.

    Args:
        responses, tokens: of the rollout; tokens with the prompts.
        routes: bytes of all routes from the servers to the trainer.
        weights: bytes of one weight sync, in float32.
        host: bytes that the ranks of a node hold for the rollout.
        exchanged: bytes that a rank gathers of parameters, reduces of gradients and sends to experts.
        checkpoint: bytes of one: weights and both moments, in float32.
        response: seconds of a response as long as it may be, while an engine decodes as many as it can.
        rollout, score, update, exchange, sync, probe, save: seconds, as if nothing overlapped; every step is saved.
    """

    responses: int
    tokens: int
    routes: int
    weights: int
    host: int
    exchanged: int
    checkpoint: int
    response: float
    rollout: float
    score: float
    update: float
    exchange: float
    sync: float
    probe: float
    save: float

    @property
    def seconds(self) -> float:
        """The parts follow one another."""
        return float(sum(getattr(self, part) for part in PARTS))

    @property
    def disk(self) -> int:
        """Bytes of a run: the checkpoints that are kept, two weight syncs while one replaces the other, the model."""
        return CHECKPOINTS * self.checkpoint + 2 * self.weights + self.weights // 2


def plan(shape: Shape, recipe: Recipe, titan: Torchtitan, vllm: Vllm, num_ranks: int, gpu: Gpu) -> Plan:
    """Check that everything divides and fits, but for the trainer's memory, which the dry run knows.

    Args:
        shape: of the model.
        recipe: the method.
        titan, vllm: the engines' settings.
        num_ranks: of the trainer.
        gpu: of every node.

    Raises:
        ConfigError: what does not divide or fit, and the remedy.
    """
    check_method(recipe)
    check_served(recipe)
    check_lengths(titan, vllm)
    check_topology(shape, titan, vllm, num_ranks)
    if vllm.quantization != "none" and not gpu.fp8:
        raise ConfigError(
            f"vllm.quantization = {vllm.quantization} needs a GPU that multiplies in FP8, and {gpu.name} does not; "
            "set vllm.quantization=none or choose another --gpu"
        )
    length = vllm.max_prompt + vllm.max_tokens
    kv_token = memory.kv_bytes(shape, vllm.kv_cache_dtype) // min(vllm.tensor, shape.num_key_value_heads)
    weights = memory.serving_weights(shape, vllm.quantization) // vllm.tensor
    free = gpu.usable - weights - SERVING
    if free < kv_token * length:
        raise ConfigError(
            f"a rollout engine has {free / GIB:.1f} GiB left for its KV cache on {gpu.name}, and one response of "
            f"vllm.max_prompt + vllm.max_tokens = {length} needs {kv_token * length / GIB:.1f}; "
            f"{_at_most(free // kv_token)}, or raise vllm.tensor"
        )
    return Plan(
        gpu=gpu,
        num_ranks=num_ranks,
        nodes=-(-num_ranks // GPUS_PER_NODE),
        ranks_per_node=min(num_ranks, GPUS_PER_NODE),
        rollout_nodes=-(-num_ranks // GPUS_PER_NODE),
        engines_per_node=GPUS_PER_NODE // vllm.tensor,
        kv_cache=free,
        sequences=min(vllm.max_sequences, free // (kv_token * length)),
    )


def check_topology(shape: Shape, titan: Torchtitan, vllm: Vllm, num_ranks: int) -> None:
    """Refuse degrees that do not divide what they share.

    Raises:
        ConfigError: the first that does not.
    """
    if num_ranks < 1 or (num_ranks > GPUS_PER_NODE and num_ranks % GPUS_PER_NODE):
        raise ConfigError(
            f"--world {num_ranks} does not fill nodes of {GPUS_PER_NODE} GPUs; give a multiple of {GPUS_PER_NODE}, or "
            "less than one node"
        )
    check_layout(titan, shape)
    check_degrees(titan, num_ranks)
    if titan.tensor > 1:
        raise ConfigError(
            f"torchtitan.tensor = {titan.tensor}: its communication cannot be estimated yet; set torchtitan.tensor = 1 "
            "and raise torchtitan.loss_chunks where memory is short"
        )
    for size, what in ((GPUS_PER_NODE, "the GPUs of a node"), (shape.num_attention_heads, "attention heads")):
        if size % vllm.tensor:
            raise ConfigError(f"vllm.tensor = {vllm.tensor} does not divide {size}, {what}; choose 1, 2, 4 or 8")
    if titan.pack_length > shape.max_position_embeddings:
        raise ConfigError(
            f"torchtitan.pack_length = {titan.pack_length} is more than the {shape.max_position_embeddings} positions "
            "of the model; lower it"
        )


def check_memory(peak: int, per_position: float, titan: Torchtitan, gpu: Gpu) -> None:
    """Refuse an update that does not fit on a GPU, and say how long a row may be.

    Args:
        peak: bytes at the peak of an update.
        per_position: bytes that one more position of every row adds.
        titan: its rows.
        gpu: that it must fit on.

    Raises:
        ConfigError: it does not fit.
    """
    if peak <= gpu.usable:
        return
    largest = titan.pack_length - (peak - gpu.usable) / per_position
    if largest < 128:
        raise ConfigError(
            f"an update takes {peak / GIB:.1f} GiB a GPU and {gpu.name} has {gpu.usable / GIB:.1f} usable, "
            "however short the rows; raise --world, or choose a larger --gpu"
        )
    raise ConfigError(
        f"an update with torchtitan.pack_length = {titan.pack_length} takes {peak / GIB:.1f} GiB a GPU and {gpu.name} "
        f"has {gpu.usable / GIB:.1f} usable; the largest that fits is {int(largest) // 128 * 128}: lower it with "
        "vllm.max_prompt + vllm.max_tokens, or choose a larger --gpu"
    )


def step(shape: Shape, recipe: Recipe, titan: Torchtitan, vllm: Vllm, where: Plan) -> Step:
    """One global step at the stated rates."""
    schedule, gpu = recipe.schedule, where.gpu
    length = vllm.max_prompt + vllm.max_tokens
    responses = schedule.prompts * schedule.group_size
    tokens = responses * length
    forward = tokens * forward_flops(shape, length) / (where.num_ranks * gpu.flops * TRAINING)
    passes = 2 if recipe.router_replay.mode == "R3" else 1  # live, and once more with the rollout's routes
    passes += recipe.terms.reference_kl > 0  # of the reference
    again = 1 if titan.activation_checkpoint == "full" else 0
    ahead = 0 if recipe.weight_scope == "token" else 1
    weight_bytes = memory.serving_weights(shape, vllm.quantization) / vllm.tensor
    kv = memory.kv_bytes(shape, vllm.kv_cache_dtype) / vllm.tensor * length / 2

    def decode(together: int) -> float:
        """Seconds of that many of the longest responses in an engine: every token reads weights and caches."""
        return vllm.max_tokens * (weight_bytes + together * kv) / (gpu.bandwidth * DECODING)

    waves = -(-responses // (where.engines * where.sequences))
    weights = 4 * memory.parameters(shape)
    probes = -(-vllm.probe_prompts // where.engines)
    gathered, sent = exchanges(shape, titan, where, tokens, passes=passes + ahead, recomputed=again)
    apart = gpu.network if where.nodes > 1 else gpu.link
    between = gpu.link if titan.expert <= where.ranks_per_node else gpu.network
    return Step(
        responses=responses,
        tokens=tokens,
        routes=tokens * memory.wire_bytes(shape),
        weights=weights,
        host=where.ranks_per_node * tokens * memory.host_bytes(shape, gates=recipe.router_replay.gates == "replayed"),
        exchanged=gathered + sent,
        checkpoint=3 * weights,
        response=decode(where.sequences),
        rollout=waves * decode(where.sequences),
        score=passes * forward,
        update=(3 + again + ahead) * forward,
        exchange=gathered / apart + sent / between,
        sync=weights / SHARED * (1 + where.engines_per_node),
        probe=decode(min(probes, where.sequences)) * -(-probes // where.sequences),
        save=3 * weights / (SHARED * where.nodes),
    )


def exchanges(
    shape: Shape, titan: Torchtitan, where: Plan, tokens: int, *, passes: int, recomputed: int
) -> tuple[int, int]:
    """Bytes that a rank moves in a step: through FSDP, and to and from experts of other ranks.

    FSDP gathers bfloat16 parameters once a forward and once a backward, and reduces float32 gradients; of the experts a
    rank gathers its share. Every token goes to K experts and comes back, in bfloat16, once a forward and a backward.

    Args:
        shape, titan, where: model, layout and ranks.
        tokens: of the rollout.
        passes: forwards without a backward.
        recomputed: forwards again inside the backward.
    """
    row = titan.microbatch_rows * titan.pack_length
    rounds = -(-tokens // (where.num_ranks * row))
    spread = shape.num_hidden_layers * memory.experts(shape)
    own = memory.parameters(shape) - spread + spread // titan.expert
    gathered = rounds * own * (2 * (passes + 2) + 4) if where.num_ranks > 1 else 0
    away = row * shape.num_experts_per_tok * shape.hidden_size * 2 * (titan.expert - 1) // titan.expert
    sent = rounds * 2 * away * shape.num_hidden_layers * (passes + 2 + recomputed)
    return gathered, sent


def forward_flops(shape: Shape, length: int) -> float:
    """FLOP of a forward pass for one token: 2 a parameter it meets, and attention to half of the context."""
    attention = 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * length / 2
    return 2 * memory.active(shape) + attention


def _at_most(tokens: int) -> str:
    return f"lower them to {tokens} together" if tokens > 0 else "choose a larger --gpu"
