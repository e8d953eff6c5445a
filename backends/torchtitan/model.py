"""torchtitan's Qwen3-MoE from the sizes in a model folder, laid out over the ranks and filled with its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from firstorder.backends.folder import Shape
from firstorder.backends.ranks import raise_on_every_rank
from firstorder.backends.weights import Weights
from firstorder.core.errors import ConfigError

from . import adapter, replay
from .config import Torchtitan
from .head import scoring

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_config(shape: Shape, pack_length: int) -> Any:
    """torchtitan's config of a Qwen3-MoE, without the load-balancing bias, which the rollout engine does not have."""
    rope = adapter.CosSinRoPE.Config(dim=shape.head_dim, max_seq_len=pack_length, theta=shape.rope_theta)
    layers = adapter.moe_layers(
        n_layers=shape.num_hidden_layers,
        dim=shape.hidden_size,
        n_heads=shape.num_attention_heads,
        n_kv_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        moe_hidden_dim=shape.moe_intermediate_size,
        num_experts=shape.num_experts,
        top_k=shape.num_experts_per_tok,
        attn_backend="flex",
        moe_comm_backend="standard",
        rope=rope,
    )
    for layer in layers:
        layer.moe.load_balance_coeff = None
        layer.moe.router.route_norm = shape.norm_topk_prob
    embedding = adapter.Embedding.Config(
        num_embeddings=shape.vocab_size, embedding_dim=shape.hidden_size, param_init=adapter.linear_init
    )
    head = adapter.Linear.Config(
        in_features=shape.hidden_size, out_features=shape.vocab_size, param_init=adapter.linear_init
    )
    config = adapter.Qwen3Model.Config(
        dim=shape.hidden_size,
        vocab_size=shape.vocab_size,
        norm=adapter.norm(shape.hidden_size),
        tok_embeddings=embedding,
        lm_head=head,
        layers=layers,
        enable_weight_tying=shape.tie_word_embeddings,
    )
    for norm in norms(config):
        norm.eps = shape.rms_norm_eps
    return config


def norms(config: Any) -> list[Any]:
    """The configs of a model's norms: of layers, of queries and keys, and the last."""
    of_layers = [(layer.attention_norm, layer.ffn_norm, layer.attention.qk_norm) for layer in config.layers]
    return [config.norm, *(norm for each in of_layers for norm in each)]


def layout(settings: Torchtitan, num_ranks: int) -> tuple[Any, Any]:
    """torchtitan's parallelism config and the meshes it makes of `num_ranks` ranks.

    Raises:
        ConfigError: the degrees do not multiply to the number of ranks.
    """
    config = adapter.ParallelismConfig(
        data_parallel_shard_degree=settings.shard,
        tensor_parallel_degree=settings.tensor,
        expert_parallel_degree=settings.expert,
        spmd_backend="partial_dtensor",  # the default backend needs a later torch at more than one rank
    )
    try:
        dims = adapter.ParallelDims.from_config(config, num_ranks)
        dims.build_mesh()
        adapter.set_timeouts(dims, settings.timeout)
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"the layout of [torchtitan] does not fit {num_ranks} ranks: {error}") from None
    return config, dims


def build(shape: Shape, settings: Torchtitan, parallelism: Any, dims: Any) -> Any:
    """A model with random weights, its routers recording and replaying, laid out over the ranks."""
    return materialise(lay_out(shape, settings, parallelism, dims))


def frozen(shape: Shape, settings: Torchtitan, parallelism: Any, dims: Any, weights: Weights) -> Any:
    """A second model, laid out as the first, that holds the weights of a folder and has no gradients."""
    built = build(shape, settings, parallelism, dims).requires_grad_(False)
    HuggingFace(model_config(shape, settings.pack_length), built).read(weights)
    return built


def lay_out(shape: Shape, settings: Torchtitan, parallelism: Any, dims: Any) -> Any:
    """As `build`, but on the meta device: every layout is settled and no tensor holds memory."""
    adapter.dist_utils.set_spmd_backend(parallelism.spmd_backend)
    dtype = DTYPES[settings.dtype]
    training = adapter.TrainingConfig(
        seq_len=settings.pack_length, mixed_precision_param=settings.dtype, disable_cuda_graphs=True
    )
    config = model_config(shape, settings.pack_length)
    config.update_from_config(config=SimpleNamespace(parallelism=parallelism, training=training))
    adapter.substitute(config, dtype)  # after the line above, which reads the stock classes
    replay.install(config)
    config = scoring(config, settings.loss_chunks)
    with torch.device("meta"), adapter.set_default_dtype(torch.float32):
        model = config.build()
    recompute = {"none": None, "full": adapter.FullAC.Config(), "selective": adapter.SelectiveAC.Config()}
    return adapter.parallelize_qwen3(
        model,
        parallel_dims=dims,
        training=training,
        parallelism=parallelism,
        compile_config=adapter.compiling(settings.compile),
        ac_config=recompute[settings.activation_checkpoint],
        dump_folder="",
    )


def materialise(model: Any) -> Any:
    """Memory and random weights for a model that is laid out."""
    model.to_empty(device=adapter.device_type)
    with torch.no_grad():
        model.init_weights()
    if adapter.ON_CPU:  # gloo lacks the scaled sum that FSDP takes when it must not divide gradients
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
    return model.train()


class HuggingFace:
    """Weights in and out under the names of Hugging Face.

    Args:
        config: torchtitan's config of the model.
        model: the model, sharded or not.
    """

    def __init__(self, config: Any, model: Any) -> None:
        self._names, self._model = adapter.Qwen3StateDictAdapter(config, None), model

    def read(self, weights: Weights) -> None:
        """Fill the model from the safetensors of a folder, every rank its own shards.

        Raises:
            ConfigError: a value is not finite.
        """
        tensors, failed = self._names.to_hf(self._model.state_dict()), None
        try:
            for name, tensor in tensors.items():
                for part, offsets in _parts(tensor):
                    part.copy_(weights.read(name, offsets, part.shape))
        except ConfigError as error:
            failed = error
        raise_on_every_rank(failed)
        self._model.load_state_dict(self._names.from_hf(tensors))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor) of every weight; with several ranks all must iterate.

        Gathered one by one, and before they are renamed: of sharded experts only a rank's own would get names. They are
        in host memory: a device that holds a shard need not hold the whole.
        """
        for name, tensor in self._model.state_dict().items():
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            yield from ((key, value.detach().cpu()) for key, value in self._names.to_hf({name: whole}).items())


def _parts(tensor: Tensor) -> Iterator[tuple[Tensor, Iterable[int]]]:
    """What this rank holds of a tensor, and where in the whole it starts."""
    if not isinstance(tensor, DTensor):
        yield tensor, [0] * tensor.ndim
        return
    sharded: Any = tensor
    for chunk in sharded.__create_chunk_list__():
        if tensor.to_local().numel():
            yield tensor.to_local(), chunk.offsets


def last_line(error: BaseException) -> str:
    """What an engine's error says, without the traceback of the rank that it happened on."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
