"""What every key of a Qwen3-MoE's config.json means: a value that is used, one that is refused, or none at all.

A key that is absent means what it means to `Qwen3MoeConfig` of transformers, which vLLM reads the same file with. A key
in no table here is refused: nobody can say that the engines ignore it alike.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from firstorder.core.errors import ConfigError

ARCHITECTURE, MODEL_TYPE = "Qwen3MoeForCausalLM", "qwen3_moe"

SIZES: dict[str, int] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 32768,
}
"""Sizes, and what they are where they are not named; `head_dim` is then hidden_size / num_attention_heads."""

NUMBERS: dict[str, float] = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}
SWITCHES: dict[str, bool] = {"norm_topk_prob": False, "tie_word_embeddings": False}

ALIASES = {"num_local_experts": "num_experts"}  # as transformers 5 writes it

ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0.0,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0, None),
    "model_type": (MODEL_TYPE,),
}
"""Keys of which one value is supported, the first, with others that mean the same; where absent it is that one."""

ROPE = ("rope_parameters", "rope_scaling")  # of transformers 5, and before
ROPE_ONLY: dict[str, tuple[Any, ...]] = {"rope_type": ("default",), "type": ("default",), "partial_rotary_factor": (1,)}

BIASED = {
    "topk_method": "noaux_tc",  # DeepSeek-V3
    "use_expert_bias": True,  # LFM2-MoE
    "use_routing_bias": True,  # MiniMax-M2
    "moe_router_enable_expert_bias": True,  # Ling, Megatron
}
"""Keys of a config.json that declare a router with a bias that is moved to balance its experts."""

IDLE = frozenset(
    {
        *("architectures", "transformers_version", "_name_or_path", "torch_dtype", "dtype"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "tokenizer_class"),
        *("use_cache", "initializer_range", "output_router_logits", "router_aux_loss_coef", "problem_type"),
        *("id2label", "label2id", "return_dict", "output_hidden_states", "output_attentions", "_attn_implementation"),
        *("intermediate_size", "sliding_window", "max_window_layers"),  # of dense layers and of a window, both refused
        *("chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "add_cross_attention", "torchscript"),
    }
)
"""Keys that change no log-prob of a Qwen3-MoE whose other keys are supported."""


def meaning(raw: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The sizes and constants of a model, under the names of `folder.Shape`.

    Args:
        raw: what its config.json holds.
        file: that file, for messages.

    Raises:
        ConfigError: it is of another architecture, names a key that is not understood, or has a value that is not
            supported or makes no sense.
    """
    _is_supported(raw, file)
    values: dict[str, Any] = {name: _named(raw, name, default, file) for name, default in SIZES.items()}
    for name, size in values.items():
        if type(size) is not int or size < 1:
            raise ConfigError(
                f"{file} has {name} = {_short(size)}, and it must be an integer of at least 1; correct it"
            )
    values |= {name: raw.get(name, default) for name, default in SWITCHES.items()}
    for name in SWITCHES:
        if type(values[name]) is not bool:
            raise ConfigError(f"{file} has {name} = {_short(values[name])}, and it must be true or false; correct it")
    values |= {"rms_norm_eps": raw.get("rms_norm_eps", NUMBERS["rms_norm_eps"]), "rope_theta": _theta(raw, file)}
    for name in NUMBERS:
        number = values[name]
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0.0 < number < math.inf:
            raise ConfigError(f"{file} has {name} = {_short(number)}, and it must be a positive number; correct it")
        values[name] = float(number)
    values["head_dim"] = _head_dim(raw, values, file)
    _fits_together(values, file)
    return values


def _is_supported(raw: Mapping[str, Any], file: str) -> None:
    for key, value in BIASED.items():
        if raw.get(key) == value:
            raise ConfigError(
                f"{file} has {key} = {value!r}: a bias that balances the experts moves the trainer's routes away from "
                "those of the rollouts; give a model without one"
            )
    names = raw.get("architectures")
    if names != [ARCHITECTURE]:
        listed = ", ".join(map(str, names))[:60] if isinstance(names, list) and names else "no architecture"
        raise ConfigError(f"{file} holds {listed}, and only {ARCHITECTURE} is supported; give another torchtitan.model")
    if "model_type" not in raw:
        raise ConfigError(f"{file} lacks model_type, without which vLLM cannot load it; add {MODEL_TYPE!r}")
    for key, values in ONLY.items():
        _only(raw, key, values, file)
    known = {*SIZES, *NUMBERS, *SWITCHES, *ALIASES, *ONLY, *ROPE, *IDLE, *BIASED, "head_dim"}
    for key in raw:
        if key not in known:
            raise ConfigError(
                f"{file} has {_short(key)} = {_short(raw[key])}, a key that is not understood here; remove it if it "
                "does not change what the model computes, or give another model"
            )


def _only(table: Mapping[str, Any], key: str, values: tuple[Any, ...], file: str) -> None:
    if key in table and table[key] not in values:
        raise ConfigError(
            f"{file} has {key} = {_short(table[key])}, and only {values[0]!r} is supported; give another model"
        )


def _named(raw: Mapping[str, Any], name: str, default: Any, file: str) -> Any:
    """The value of a key under any of its names.

    Raises:
        ConfigError: two names have two values.
    """
    names = [name, *(alias for alias, meant in ALIASES.items() if meant == name)]
    pairs = [(key, raw[key]) for key in names if key in raw]
    if len(pairs) > 1 and pairs[0][1] != pairs[1][1]:
        (one, first), (other, second) = pairs
        raise ConfigError(
            f"{file} has {one} = {_short(first)} and {other} = {_short(second)}, which mean the same; remove one"
        )
    return pairs[0][1] if pairs else default


def _theta(raw: Mapping[str, Any], file: str) -> Any:
    """The base of the rotary frequencies; any scaling of them is refused."""
    tables = {key: raw[key] for key in ROPE if raw.get(key)}
    if len(tables) > 1:
        raise ConfigError(f"{file} has both {' and '.join(tables)}, of which only one would be read; remove the other")
    thetas = [raw["rope_theta"]] if "rope_theta" in raw else []
    for key, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{file} has {key} = {_short(table)}, and it must be a table; correct it")
        for name in table:
            if name not in ROPE_ONLY and name != "rope_theta":
                raise ConfigError(
                    f"{file} has {key}.{_short(name)} = {_short(table[name])}: rotary frequencies that are scaled are "
                    "not supported; give another model"
                )
        named = {f"{key}.{name}": value for name, value in table.items()}
        for name, values in ROPE_ONLY.items():
            _only(named, f"{key}.{name}", values, file)
        thetas += [table["rope_theta"]] if "rope_theta" in table else []
    if any(theta != thetas[0] for theta in thetas):
        raise ConfigError(f"{file} has more than one rope_theta: {', '.join(map(_short, thetas))}; remove all but one")
    return thetas[0] if thetas else NUMBERS["rope_theta"]


def _head_dim(raw: Mapping[str, Any], values: Mapping[str, Any], file: str) -> int:
    width: Any = raw.get("head_dim")
    if width is None:
        width, rest = divmod(values["hidden_size"], values["num_attention_heads"])
        if rest:
            raise ConfigError(
                f"{file} has no head_dim, and hidden_size = {values['hidden_size']} is not a multiple of "
                f"num_attention_heads = {values['num_attention_heads']}; add head_dim"
            )
    if type(width) is not int or width < 2 or width % 2:
        raise ConfigError(f"{file} has head_dim = {_short(width)}, and it must be an even number; correct it")
    return width


def _fits_together(values: Mapping[str, Any], file: str) -> None:
    if values["num_experts_per_tok"] > values["num_experts"]:
        raise ConfigError(
            f"{file} has num_experts_per_tok = {values['num_experts_per_tok']} above num_experts = "
            f"{values['num_experts']}; correct one of them"
        )
    if values["num_attention_heads"] % values["num_key_value_heads"]:
        raise ConfigError(
            f"{file} has num_attention_heads = {values['num_attention_heads']}, not a multiple of "
            f"num_key_value_heads = {values['num_key_value_heads']}; correct one of them"
        )


def _short(value: Any) -> str:
    """A value in one short line."""
    return repr(value) if isinstance(value, str) and len(value) < 60 else reprlib.repr(value)
