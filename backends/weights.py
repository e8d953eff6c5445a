"""The safetensors of a model folder, read whole: every tensor that the model has and no other, in any of two layouts.

Experts lie one by one, as most tools save them, or all of a layer in one tensor, gate and up projection joined, as
transformers 5 holds them. Whoever reads asks for the first layout and gets the part that it needs.

Shapes: E experts, D width of the model, F width of an expert.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError

from .folder import Shape, read_config

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of a value
UNREAD = (".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".msgpack", ".onnx")  # suffixes of what may be weights
OF_A_TRAINER = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state", "scaler.pt")
"""How files begin that Hugging Face's trainer leaves beside a model, none of which holds its weights."""

EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Size = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Header:
    """Where a tensor lies, and what it is."""

    file: Path
    dtype: str
    size: Size


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of a folder, which are those of its config.json.

    Args:
        headers: by name, as the files have them.
        joined: the experts of a layer lie in one tensor, [E, 2F, D] and [E, D, F].
        shape: of the model.
    """

    headers: Mapping[str, Header]
    joined: bool
    shape: Shape
    _open: dict[Path, Any] = field(default_factory=dict)

    def read(self, name: str, offsets: Iterable[int], sizes: Iterable[int]) -> Tensor:
        """A part of a tensor of `expected`, which may be a whole.

        Raises:
            ConfigError: it has values that are not finite.
        """
        where = [slice(start, start + size) for start, size in zip(offsets, sizes, strict=True)]
        match = EXPERT.fullmatch(name)
        if self.joined and match is not None:
            stem, expert, which = match.groups()
            up = self.shape.moe_intermediate_size if which == "up" else 0
            where = [slice(where[0].start + up, where[0].stop + up), where[1]]
            part = self._slice(f"{stem}.{'down' if which == 'down' else 'gate_up'}_proj")[(int(expert), *where)]
        else:
            part = self._slice(name)[tuple(where)]
        if not torch.isfinite(part).all():
            raise ConfigError(f"{self._file(name)} holds {name} with values that are not finite; give another model")
        read: Tensor = part
        return read

    def _slice(self, name: str) -> Any:
        from safetensors import safe_open

        file = self.headers[name].file
        if file not in self._open:
            self._open[file] = safe_open(file, "pt")
        return self._open[file].get_slice(name)

    def _file(self, name: str) -> Path:
        return self.headers[name].file if name in self.headers else next(iter(self.headers.values())).file.parent


def expected(shape: Shape, *, joined: bool = False) -> dict[str, Size]:
    """Name and size of every tensor of a model, with the experts of a layer one by one or joined.

    A head that is the embedding is not among them.
    """
    width, hidden, experts = shape.hidden_size, shape.moe_intermediate_size, shape.num_experts
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    sizes: dict[str, Size] = {EMBEDDING: (shape.vocab_size, width), "model.norm.weight": (width,)}
    if not shape.tie_word_embeddings:
        sizes[HEAD] = (shape.vocab_size, width)
    one: dict[str, Size] = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
    layer: dict[str, Size] = {
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "self_attn.q_norm.weight": (shape.head_dim,),
        "self_attn.k_norm.weight": (shape.head_dim,),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate.weight": (experts, width),
    }
    if joined:
        layer["mlp.experts.gate_up_proj"] = (experts, 2 * hidden, width)
        layer["mlp.experts.down_proj"] = (experts, width, hidden)
    else:
        layer |= {f"mlp.experts.{e}.{name}.weight": size for e in range(experts) for name, size in one.items()}
    for number in range(shape.num_hidden_layers):
        sizes |= {f"model.layers.{number}.{name}": size for name, size in layer.items()}
    return sizes


def open_weights(folder: Path, shape: Shape) -> Weights:
    """The weights of a folder, their headers read and nothing else.

    Raises:
        ConfigError: a tensor is missing, of another shape, no float or not the model's; a file is damaged, is not
            what the index says, or would go unread.
    """
    headers = _headers(folder)
    joined = any(name.endswith(".mlp.experts.gate_up_proj") for name in headers)
    sizes = expected(shape, joined=joined)
    optional = {HEAD: sizes[EMBEDDING]} if shape.tie_word_embeddings else {}
    for what, names in (("lacks", sizes.keys() - headers), ("also holds", headers.keys() - sizes - optional.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise _other(folder, f"it {what} {min(names)}{more}")
    for name, size in (sizes | optional).items():
        if name in headers and headers[name].size != size:
            raise _other(folder, f"{name} is {list(headers[name].size)} and not {list(size)}")
        if name in headers and headers[name].dtype not in FLOATS:
            raise _other(folder, f"{name} is {headers[name].dtype} and none of {', '.join(FLOATS)}")
    weights = Weights(headers=headers, joined=joined, shape=shape)
    if HEAD in optional and HEAD in headers and not torch.equal(_all(weights, HEAD), _all(weights, EMBEDDING)):
        raise _other(folder, f"tie_word_embeddings is true, and {HEAD} is not {EMBEDDING}")
    return weights


def _all(weights: Weights, name: str) -> Tensor:
    tensor: Tensor = weights._slice(name)[:]
    return tensor


def _other(folder: Path, why: str) -> ConfigError:
    return ConfigError(f"{folder} does not hold the weights of its config.json: {why}; give a complete model folder")


def _headers(folder: Path) -> dict[str, Header]:
    """Every tensor in the safetensors of a folder; nothing that may be weights lies beside them."""
    try:
        names = sorted(file.name for file in folder.iterdir() if file.is_file())
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror}; give another torchtitan.model") from None
    for name in names:
        unread = name.endswith(UNREAD) and not name.startswith(OF_A_TRAINER)
        if unread or name.startswith("adapter_"):
            raise ConfigError(f"{folder} holds {name}, which would not be read; remove it, or merge it into the model")
    files = [name for name in names if name.endswith(".safetensors")]
    if not files:
        raise _other(folder, "there is no *.safetensors")
    headers: dict[str, Header] = {}
    for name in files:
        for tensor, header in _header(folder / name).items():
            if tensor in headers:
                raise _other(folder, f"{tensor} is in {headers[tensor].file.name} and in {name}")
            headers[tensor] = header
    for index in (name for name in names if name.endswith(".safetensors.index.json")):
        _agrees(folder, index, headers)
    return headers


def _agrees(folder: Path, index: str, headers: Mapping[str, Header]) -> None:
    """Refuse an index that is not of these files."""
    place = read_config(folder, index).get("weight_map")
    if not isinstance(place, dict):
        raise _other(folder, f"{index} has no weight_map")
    for name in sorted(place.keys() | headers.keys()):
        listed, actual = place.get(name, "nowhere"), headers[name].file.name if name in headers else "nowhere"
        if listed != actual:
            raise _other(folder, f"{index} has {name} in {listed}, and it is in {actual}")


def _header(file: Path) -> dict[str, Header]:
    """What a safetensors file says of its tensors, whose bytes must be there.

    Reference:
        https://huggingface.co/docs/safetensors: eight bytes with the length of a JSON table, the table, the values.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            table = dict(json.loads(f.read(min(length, size)).decode()))
        table.pop("__metadata__", None)
        header = {name: Header(file=file, dtype=one["dtype"], size=tuple(one["shape"])) for name, one in table.items()}
        end = 8 + length + max((one["data_offsets"][1] for one in table.values()), default=0)
        spans = {name: one["data_offsets"][1] - one["data_offsets"][0] for name, one in table.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is no safetensors file"
        raise ConfigError(f"cannot read {file}: {reason}; copy it again") from None
    if end != size:
        raise ConfigError(f"{file} has {size} bytes, and its header promises {end}; copy it again")
    for name, one in header.items():
        if one.dtype in FLOATS and math.prod(one.size) * FLOATS[one.dtype] != spans[name]:
            raise ConfigError(
                f"{file} is damaged: {name} of shape {list(one.size)} has {spans[name]} bytes; copy it again"
            )
    return header
