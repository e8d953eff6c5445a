"""A model folder as Hugging Face lays it out: config.json, safetensors, tokenizer.json; what both engines load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from firstorder.core.errors import ConfigError
from firstorder.core.runs.files import to_json, write_whole

from .architecture import ARCHITECTURE, MODEL_TYPE, meaning

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")  # files that are not copied with a model
SHARD = 5_000_000_000  # bytes of one safetensors file, as Hugging Face's tools split them


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes and constants of a Qwen3-MoE, under the names of its config.json; all that its function depends on.

    The last three are by default those of the models that are made here.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    moe_intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    rope_theta: float
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    norm_topk_prob: bool = True
    tie_word_embeddings: bool = False


def read_shape(folder: Path) -> Shape:
    """The sizes and constants in a folder's config.json.

    Raises:
        ConfigError: there is none, or it has what is not supported; see `architecture.meaning`.
    """
    return Shape(**meaning(read_config(folder), f"{folder}/config.json"))


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A folder's config.json, or another JSON file of it.

    Raises:
        ConfigError: it is missing or broken.
    """
    file = folder / name
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(table, dict):
            raise ValueError(f"it holds a {type(table).__name__} and no table")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot read {file}: {reason}; give a model folder, e.g. from `firstorder coldstart`"
        ) from None
    return table


def write_config(folder: Path, shape: Shape, eos: int, pad: int) -> None:
    """Write config.json and generation_config.json for a model of `shape`."""
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        **vars(shape),
        "intermediate_size": shape.moe_intermediate_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "hidden_act": "silu",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "attention_bias": False,
        "use_sliding_window": False,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    write_whole(folder / "config.json", to_json(config))
    write_whole(folder / "generation_config.json", to_json({"eos_token_id": eos, "pad_token_id": pad}))


def copy_rest(source: Path, folder: Path) -> None:
    """Copy what a model folder holds beside its weights: configs, tokenizer, templates."""
    for file in source.iterdir():
        if file.is_file() and file.suffix not in WEIGHTS and not file.name.endswith(".index.json"):
            shutil.copy(file, folder)


def write_weights(folder: Path, weights: Iterable[tuple[str, Tensor]], limit: int = SHARD) -> None:
    """Write model.safetensors under the names of Hugging Face, or numbered files and their index.

    Args:
        folder: where to.
        weights: (name, tensor); those of one file are held at a time.
        limit: bytes of a file.
    """
    from safetensors.torch import save_file

    parts: list[list[str]] = []
    total = 0
    for shard in _parts(weights, limit):
        save_file(shard, folder / f"{len(parts)}.part", metadata={"format": "pt"})
        parts.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    place: dict[str, str] = {}
    for number, names in enumerate(parts):
        suffix = f"-{number + 1:05d}-of-{len(parts):05d}" if len(parts) > 1 else ""
        (folder / f"{number}.part").rename(folder / f"model{suffix}.safetensors")
        place |= dict.fromkeys(names, f"model{suffix}.safetensors")
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": place}
        write_whole(folder / "model.safetensors.index.json", to_json(index))


def _parts(weights: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    """Weights in their order, `limit` bytes at a time."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.detach().cpu().contiguous().clone()
        size += tensor.nbytes
    yield shard
