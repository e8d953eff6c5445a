"""A small Qwen3-MoE that can learn, made from nothing: random weights, then supervised steps on demonstrations.

The folder it writes is one that both engines load. It stops while the model still errs, so that there is something left
for reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError
from firstorder.core.finite import check_finite
from firstorder.core.method.recipe import Optimizer, Recipe, Schedule

from .extras import require
from .folder import Shape, write_config, write_weights
from .keys import key
from .tasks import sums
from .torchtitan.config import Torchtitan

SMALL = Shape(
    vocab_size=64,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    moe_intermediate_size=128,
    num_experts=8,
    num_experts_per_tok=2,
    rope_theta=10000.0,
    max_position_embeddings=256,
)
"""1.8 million parameters, of which 0.6 million are active at a token."""

STEPS = {"direct": 400, "reversed": 400, "steps": 80}
DEMONSTRATIONS = 128  # of one supervised step


def coldstart(
    style: str,
    out: Path,
    steps: int | None = None,
    seed: int = 0,
    done: Callable[[int, int, float], None] | None = None,
) -> float:
    """Train a small model on demonstrations of a style and write its folder.

    Args:
        style: of `sums.STYLES`.
        out: a new or empty folder.
        steps: supervised steps; by style unless given.
        seed: of the initial weights and of the demonstrations.
        done: called with (step, steps, loss).

    Returns:
        The last loss, nats a response token.

    Raises:
        ConfigError: an unknown style, a folder in use, or a missing package.
    """
    chosen = sums.check_style(style)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; give a new --out")
    require("torchtitan", "safetensors", "tokenizers")
    from .torchtitan.trainer import Trainer

    count = STEPS[chosen] if steps is None else steps
    out.mkdir(parents=True, exist_ok=True)
    write_config(out, SMALL, sums.END, sums.PAD)
    sums.write_tokenizer(out)
    write_weights(out, initial_weights(SMALL, seed).items())
    recipe = Recipe(schedule=Schedule(steps=count), optimizer=Optimizer(lr=2e-3))
    settings = Torchtitan(model=str(out), dtype="float32", pack_length=128, microbatch_rows=64, warmup_steps=20)
    trainer, loss = Trainer(settings, recipe, 1.0, out), float("nan")
    for step in range(count):
        loss = trainer.supervise(*demonstrations(chosen, seed, step)).loss
        if done is not None:
            done(step + 1, count, loss)
    check_finite({"the loss of the last step": loss}, "the supervised steps diverge; give another --seed")
    write_weights(out, trainer.weights())
    return loss


def initial_weights(shape: Shape, seed: int) -> dict[str, Tensor]:
    """Random weights as torchtitan draws them: normal, of standard deviation 0.02, and less where outputs add up."""
    generator = torch.Generator().manual_seed(seed)
    width, layers, hidden = shape.hidden_size, shape.num_hidden_layers, shape.moe_intermediate_size
    residual = 0.02 / (2 * layers) ** 0.5

    def normal(*size: int, std: float = 0.02) -> Tensor:
        return torch.randn(*size, generator=generator) * std

    weights = {"model.embed_tokens.weight": normal(shape.vocab_size, width), "model.norm.weight": torch.ones(width)}
    head = normal(shape.vocab_size, width)
    if not shape.tie_word_embeddings:
        weights["lm_head.weight"] = head
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    for layer in range(layers):
        here, attention = f"model.layers.{layer}", f"model.layers.{layer}.self_attn"
        weights |= {f"{attention}.q_proj.weight": normal(queries, width)}
        weights |= {f"{attention}.{name}_proj.weight": normal(keys, width) for name in ("k", "v")}
        weights |= {f"{attention}.o_proj.weight": normal(width, queries, std=residual)}
        weights |= {f"{attention}.{name}_norm.weight": torch.ones(shape.head_dim) for name in ("q", "k")}
        weights |= {f"{here}.{name}_layernorm.weight": torch.ones(width) for name in ("input", "post_attention")}
        weights |= {f"{here}.mlp.gate.weight": normal(shape.num_experts, width)}
        for expert in range(shape.num_experts):
            mlp = f"{here}.mlp.experts.{expert}"
            weights |= {f"{mlp}.{name}_proj.weight": normal(hidden, width) for name in ("gate", "up")}
            weights |= {f"{mlp}.down_proj.weight": normal(width, hidden, std=residual)}
    return weights


def demonstrations(style: sums.Style, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with correct responses: tokens and mask of the response `[B, L]`, lengths `[B]`."""
    pairs = []
    for i in range(DEMONSTRATIONS):
        question = sums.prompt(key("demonstration", seed, step, i))
        pairs.append((sums.encode(question), [*sums.encode(sums.demonstrate(question, style)), sums.END]))
    lengths = torch.tensor([len(prompt) + len(response) for prompt, response in pairs])
    tokens = torch.full((len(pairs), int(lengths.max())), sums.PAD)
    for row, (prompt, response) in enumerate(pairs):
        tokens[row, : lengths[row]] = torch.tensor(prompt + response)
    position = torch.arange(tokens.shape[1])
    first = torch.tensor([len(prompt) for prompt, _ in pairs])
    return tokens, lengths, (position >= first[:, None]) & (position < lengths[:, None])
