"""Bytes that follow from the sizes of a model: weights, KV cache, and routes on their way to the trainer."""

from __future__ import annotations

from firstorder.backends.folder import Shape

BLOCK = 128  # edge of a block of FP8 weights that shares a float32 scale


def parameters(shape: Shape) -> int:
    """Parameters of a Qwen3-MoE."""
    norms = shape.num_hidden_layers * 2 * (shape.hidden_size + shape.head_dim) + shape.hidden_size
    return outer(shape) + shape.num_hidden_layers * (attention(shape) + experts(shape) + router(shape)) + norms


def active(shape: Shape) -> int:
    """Parameters in matrix products that one token meets, the embedding left out."""
    chosen = experts(shape) * shape.num_experts_per_tok // shape.num_experts
    return outer(shape) // 2 + shape.num_hidden_layers * (attention(shape) + chosen + router(shape))


def outer(shape: Shape) -> int:
    """Parameters of the embedding and of the output layer."""
    return 2 * shape.vocab_size * shape.hidden_size


def attention(shape: Shape) -> int:
    """Parameters of the four projections of a layer: queries and output, keys and values."""
    heads = 2 * shape.num_attention_heads + 2 * shape.num_key_value_heads
    return heads * shape.head_dim * shape.hidden_size


def experts(shape: Shape) -> int:
    """Parameters of the experts of a layer, three matrices each."""
    return 3 * shape.num_experts * shape.moe_intermediate_size * shape.hidden_size


def router(shape: Shape) -> int:
    """Parameters of the router of a layer."""
    return shape.num_experts * shape.hidden_size


def serving_weights(shape: Shape, quantization: str) -> int:
    """Bytes of the weights of a rollout engine in bfloat16, its projections and experts in FP8 if they are quantised.

    FP8 takes a byte a parameter and, by block, a float32 scale for each 128 x 128 of them. Embedding, output layer,
    routers and norms stay in bfloat16.
    """
    low = shape.num_hidden_layers * (attention(shape) + experts(shape)) if quantization != "none" else 0
    scales = 4 * low // BLOCK**2 if quantization == "fp8_per_block" else 0
    return 2 * (parameters(shape) - low) + low + scales


def kv_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of the KV cache for one token: 2 · layers · KV heads · width · bytes of a value."""
    size = 1 if dtype.startswith("fp8") else 2
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * size


def route_bytes(shape: Shape, size: int) -> int:
    """Bytes of the routes of one token, M · K ids of `size` bytes each."""
    return shape.num_hidden_layers * shape.num_experts_per_tok * size


def wire_bytes(shape: Shape) -> int:
    """Bytes that the routes of one token take from a server to the trainer: ids of one byte (two above 256 experts),
    in base64, four characters for three bytes."""
    return -(-4 * route_bytes(shape, 1 if shape.num_experts <= 256 else 2) // 3)


def host_bytes(shape: Shape, *, gates: bool = False) -> int:
    """Bytes that a rank of the trainer holds for one token of a rollout: its routes three times as int16 (as they came,
    padded into the batch, and of the scoring pass), a float64 margin of every layer and, with `gates`, the float32
    weight of each expert of the scoring pass."""
    weights = route_bytes(shape, 4) if gates else 0
    return 3 * route_bytes(shape, 2) + 8 * shape.num_hidden_layers + weights
