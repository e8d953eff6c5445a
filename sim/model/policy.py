"""A tiny autoregressive MoE language model, for a whole ensemble at once.

Shapes: M members, N prefixes, L MoE layers, D width, E experts, F expert width, K experts a token, V vocabulary.

Token by token, with a state that is carried along, so that an expert chosen early changes all that follows:

    x_0 = embed[token]
    for each layer:   h = x + tanh(x A + s B);  x = h + Σ_{e in top-k} g_e · silu(norm(h) W1_e) W2_e;  s' = norm(x)
    logits = norm(x) W_out / temperature

Where contexts are rows of features, x_0 is the sum of their embeddings, each by how much of it a context has, and
no state is carried: there is no B.

Every product goes through an `Arithmetic`, so the training and the inference engine are this one function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as nn

from firstorder.core.router import Router
from firstorder.core.routing import Replay, route
from firstorder.core.softmax import log_softmax
from firstorder.sim.config import Sim

from . import noise
from .experts import chosen, fills
from .norm import unit
from .numerics import DOWN, HEAD, MIX, ROUTER, UP, Arithmetic, Site

Weights = dict[str, Tensor]

# With this gain relative noise of 0.1 moves about 10% of the routes at a KL of about 1.5e-3 nats a token, the mismatch
# that arXiv 2510.11370 reports for Qwen3-30B-A3B.
EXPERT_GAIN = 0.35


@dataclass(frozen=True, kw_only=True)
class Step:
    """What running one token of N prefixes gives.

    Args:
        state: `[M, N, L, D]`, carried to the next token, or what each layer has made of it where none is.
        logp: `[M, N, V]` nats, of the next token.
        ids: int16 `[M, N, L, K]`, the experts used.
        gates: `[M, N, L, K]`, their gate weights, without gradient.
        live: int16 `[M, N, L, K]`, those that the routers would have chosen without replay.
        margin: `[M, N, L]`, k-th minus (k+1)-th selection score: how far the live choice is from flipping.
        router_logp: `[M, N, L, E]` nats, log softmax of the router logits.
    """

    state: Tensor
    logp: Tensor
    ids: Tensor
    gates: Tensor
    live: Tensor
    margin: Tensor
    router_logp: Tensor


def initial_weights(sim: Sim, seeds: Tensor) -> Weights:
    """Random float64 weights, one member a seed; a member is the same alone and in any ensemble.

    Args:
        sim: the sizes.
        seeds: int64 `[M]`.

    Returns:
        Tensors with a leading axis M, scaled so that router logits have unit and output logits
        `sim.sharpness` standard deviation at the start.
    """
    d, f, e, v, n = sim.width, sim.expert_width, sim.experts, sim.vocab, sim.layers
    shapes = {
        "embed": ((sim.inputs, d), 1.0),
        "mix_x": ((n, d, d), d**-0.5),
        "mix_s": ((n, d, d), d**-0.5),
        "router": ((n, d, e), d**-0.5),
        "up": ((n, e, d, f), d**-0.5),
        "down": ((n, e, f, d), EXPERT_GAIN * f**-0.5),
        "head": ((d, v), sim.sharpness * d**-0.5),
    }
    weights = {}
    for index, (name, (shape, scale)) in enumerate(shapes.items()):
        if name == "mix_s" and not sim.carries:
            continue
        key = noise.combine(noise.mix(seeds)[:, None], index)
        draw = noise.normal(noise.combine(key, torch.arange(math.prod(shape))))
        weights[name] = (scale * draw).reshape(len(seeds), *shape)
    if sim.router in ("sigmoid_bias", "group_limited"):
        key = noise.combine(noise.mix(seeds)[:, None], len(shapes))
        weights["bias"] = 0.05 * noise.normal(noise.combine(key, torch.arange(n * e))).reshape(-1, n, e)
    return weights


def trainable(weights: Weights) -> Weights:
    """The parameters: all weights but the selection bias of a router, which no gradient reaches."""
    return {name: w for name, w in weights.items() if name != "bias"}


def leaves(weights: Weights) -> Weights:
    """Copies of the weights of which the trainable ones require grad."""
    return weights | {name: w.detach().clone().requires_grad_() for name, w in trainable(weights).items()}


def flatten(weights: Weights) -> Tensor:
    """The parameters of each member as one vector `[M, P]`, in the dictionary's order."""
    return torch.cat([w.flatten(1) for w in trainable(weights).values()], dim=1)


def unflatten(vector: Tensor, like: Weights) -> Weights:
    """The inverse of `flatten`: weights shaped as `like`, whose selection bias stays."""
    parameters = trainable(like)
    parts = torch.split(vector, [w[0].numel() for w in parameters.values()], dim=1)
    return like | {name: part.view_as(w) for (name, w), part in zip(parameters.items(), parts, strict=True)}


def gradient(objective: Tensor, weights: Weights, *, keep: bool = False) -> Tensor:
    """∇ of a scalar by the weights that require grad, of each member one vector, `[M, P]`; `keep` its graph."""
    parameters = [w for w in weights.values() if w.requires_grad]
    slopes = torch.autograd.grad(objective, parameters, retain_graph=keep, materialize_grads=True)
    return torch.cat([slope.flatten(1) for slope in slopes], dim=1)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Weights as one engine stores them: quantised once.

    Args:
        weights: `embed` and `head`.
        layers: the other weights of each layer, without the axis of layers; `wide` is `up` with the experts side by
            side, `[M, D, E·F]`.
        arithmetic, router, temperature: what they are run with.
    """

    weights: Weights
    layers: tuple[Weights, ...]
    arithmetic: Arithmetic
    router: Router
    temperature: float


def load(weights: Weights, arithmetic: Arithmetic, sim: Sim) -> Model:
    """Load weights into an engine."""
    stored = {name: arithmetic.weight(w, name) for name, w in weights.items() if name not in ("embed", "bias")}
    stored["wide"] = stored["up"].transpose(2, 3).flatten(3)
    if "bias" in weights:
        stored["bias"] = weights["bias"]
    ends = {"embed": arithmetic.round(weights["embed"]), "head": stored.pop("head")}
    layers = zip(*(w.unbind(1) for w in stored.values()), strict=True)
    return Model(
        weights=ends,
        layers=tuple(dict(zip(stored, layer, strict=True)) for layer in layers),
        arithmetic=arithmetic,
        router=sim.routing,
        temperature=sim.temperature,
    )


def initial_state(model: Model, prefixes: int) -> Tensor:
    """The state before the first token, zero: `[M, N, L, D]`."""
    m, d, _ = model.layers[0]["mix_s"].shape
    return torch.zeros(m, prefixes, len(model.layers), d, dtype=torch.float64)


def step(model: Model, state: Tensor | None, inputs: Tensor, keys: Tensor, replay: Replay | None = None) -> Step:
    """Run one token after each of N prefixes.

    Args:
        model: an engine.
        state: `[M, N, L, D]` of the prefixes; None for a policy that carries none.
        inputs: the tokens, int64 `[N]`, or `[M, N]` where members run different ones; or features, float64 `[N, F]`.
        keys: int64 `[N]` or `[M, N]`: hash of each prefix with its new token, where noise is looked up.
        replay: experts `[M, N, L, K]` to use, its rule broadcastable to `[M, N]`.
    """
    a, layers = model.arithmetic, len(model.layers)
    x = _embedded(model.weights["embed"], inputs)
    carried = [None] * layers if state is None else state.unbind(2)
    given = [None] * layers if replay is None else replay.layers()
    states, routings, gates_used, router_logits = [], [], [], []
    for layer, w in enumerate(model.layers):
        h = a.round(x + torch.tanh(_mixed(a, w, x, carried[layer], Site(layer=layer, name=MIX, keys=keys))))
        normed = unit(h)
        logits = a.product(normed, w["router"], Site(layer=layer, name=ROUTER, keys=keys))
        logits = a.perturb(logits, Site(layer=layer, name=ROUTER, keys=keys))
        routing = route(logits, model.router, w["bias"][:, None] if "bias" in w else None, given[layer])
        gates = a.gates(logits, routing, model.router)
        x = a.round(h + _experts(a, w, normed, routing.ids, gates, Site(layer=layer, name=UP, keys=keys)))
        goes_on = state is not None or layer == layers - 1  # what nothing is carried from has no gradient
        states.append(unit(x if goes_on else x.detach()))
        routings.append(routing)
        gates_used.append(gates.detach())
        router_logits.append(logits.detach())
    logits = a.product(states[-1], model.weights["head"], Site(layer=layers, name=HEAD, keys=keys))
    used = torch.stack([routing.ids for routing in routings], dim=2).to(torch.int16)
    live = torch.stack([routing.live for routing in routings], dim=2).to(torch.int16) if replay is not None else used
    return Step(
        state=torch.stack(states, dim=2),
        logp=log_softmax(logits / model.temperature),
        ids=used,
        gates=torch.stack(gates_used, dim=2),
        live=live,
        margin=torch.stack([routing.margin for routing in routings], dim=2),
        router_logp=log_softmax(torch.stack(router_logits, dim=2)),
    )


def _embedded(embed: Tensor, inputs: Tensor) -> Tensor:
    """x_0 of tokens or of rows of features, `[M, N, D]`, from embeddings `[M, V or F, D]`."""
    if inputs.is_floating_point():
        return inputs @ embed
    return embed[:, inputs] if inputs.ndim == 1 else embed[torch.arange(len(inputs))[:, None], inputs]


def _mixed(a: Arithmetic, w: Weights, x: Tensor, state: Tensor | None, site: Site) -> Tensor:
    """x A + s B, `[M, N, D]`; x A where no state is carried."""
    mixed = a.product(x, w["mix_x"], site)
    return mixed if state is None else mixed + a.product(state, w["mix_s"], replace(site, name=MIX + 8))


def _experts(a: Arithmetic, w: Weights, x: Tensor, ids: Tensor, gates: Tensor, site: Site) -> Tensor:
    """Σ_e g_e · silu(x W1_e) W2_e: the chosen alone where they fill blocks, else all, the unchosen with gate 0."""
    experts = w["up"].shape[1]
    after = replace(site, name=DOWN)
    if a.plain and fills(ids, experts):
        return a.perturb(chosen(x, gates, ids, w["up"], w["down"]), after)
    dense = gates.new_zeros(*ids.shape[:-1], experts).scatter(-1, ids, gates)
    hidden = nn.silu(a.product(x, w["wide"], site))
    gated = hidden.unflatten(-1, (experts, -1)) * dense[..., None]  # type: ignore[no-untyped-call]
    return a.perturb(a.product(gated.flatten(-2), w["down"].flatten(1, 2), after), after)
