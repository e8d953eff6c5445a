"""MiniRL from scratch: the token-level objective of arXiv 2512.01374 with Routing Replay, in plain torch.

    python minirl_from_scratch.py R3      # or R2, or none

A small MoE answers a digit x with three digits whose sum is x modulo V. It samples with weights in FP8 (the engine μ)
and learns with weights in float64 (the engine π): other probabilities, and here and there other experts. A rollout
serves N updates, so that θ moves away from θ_old. Every response can be written down, so that the J printed is exact.

Shapes: B responses, L tokens with the prompt's, V tokens of the vocabulary, E experts of which a token visits K.
`logp[:, t]` is of token t given those before it; `mask` is 1 on response tokens, and off it nothing is read.
"""

import argparse
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

V, E, K, D, DIGITS, N = 6, 8, 2, 16, 3, 4

# ---- the algorithm ----


def group_advantage(rewards: Tensor, std: bool = False) -> Tensor:
    """A = R - mean of the group, `[groups, G]`, of eq. (7); with `std` divided by the group's spread, as in GRPO."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + 1e-6) if std else centred


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """The ratio of two policies at each token, at most e^20, without a gradient: the sg[.] of eq. (7)."""
    return (above - below).detach().clamp(max=20).exp()


def clip_mask(advantage: Tensor, r: Tensor, low: float, high: float) -> Tensor:
    """M of eq. (7): 0 where θ has gone far enough from θ_old in the direction that A pushes it, else 1."""
    far = ((advantage > 0) & (r > 1 + high)) | ((advantage < 0) & (r < 1 - low))
    return (~far).to(r.dtype)


def token_weights(theta: Tensor, old: Tensor, mu: Tensor, advantage: Tensor, low=0.2, high=0.27, use_is=True) -> Tensor:
    """M_t · sg[π_θ/μ] · A, what multiplies log π_θ(y_t) in eq. (7), `[B, L]`.

    By eq. (5) π_θ/μ = (π_old/μ)·(π_θ/π_old): how far the engines are apart, times how stale the rollout is; without
    importance sampling the first factor is left out. `theta`, `old`, `mu` are log-probs `[B, L]`, under replay the
    first two of the same experts, eq. (6). A is `[B, 1]`, or `[B, L]`.
    """
    return advantage * ratio(theta, mu if use_is else old) * clip_mask(advantage, ratio(theta, old), low, high)


def minirl_loss(theta: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Minus eq. (7): sum over tokens (no 1/|y|), mean over responses. Where M = 1 its gradient is minus eq. (4)."""
    scored = mask & (theta > -torch.inf)  # a token that π_θ cannot say has no score
    return -torch.where(scored, weights * theta, 0.0).sum(-1).mean()


# ---- a policy with experts ----


def policy(seed: int = 0) -> dict[str, Tensor]:
    """Random weights."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"embed": (DIGITS, V, D), "router": (D, E), "experts": (E, D, D), "head": (D, V)}
    return {name: torch.randn(*shape, generator=g, dtype=torch.float64) / D**0.5 for name, shape in shapes.items()}


def fp8(theta: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as the inference engine holds them."""
    return {name: w.detach().to(torch.float8_e4m3fn).to(w.dtype) for name, w in theta.items()}


def logits_of(theta: dict[str, Tensor], tokens: Tensor, routes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits `[B, L, V]` of the token that follows each prefix of `tokens` `[B, L]`, and the experts `[B, L, K]`.

    `routes` are replayed in place of those that the router would choose: the ids only. The gates come from the router's
    scores as they are now, so that it keeps its gradient.
    """
    places = torch.arange(tokens.shape[1])
    h = (4 * theta["embed"][places, tokens]).cumsum(1).tanh()  # what has been said so far
    scores = h @ theta["router"]
    if routes is None:
        routes = scores.topk(K, dim=-1).indices
    gates = scores.gather(-1, routes).softmax(-1)
    experts = torch.einsum("bld,edf->blef", h, theta["experts"]).tanh()
    chosen = experts.gather(2, routes[..., None].expand(*routes.shape, D))
    return (h + (gates[..., None] * chosen).sum(2)) @ theta["head"], routes


def logp(theta: dict[str, Tensor], tokens: Tensor, routes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """log π_θ `[B, L]` of each token, 0 for the prompt, and the experts `[B, L - 1, K]` that it came from."""
    logits, used = logits_of(theta, tokens[:, :-1], routes)
    chosen = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(chosen, (1, 0)), used


@torch.no_grad()
def sample(mu: dict[str, Tensor], prompts: Tensor, g: torch.Generator) -> Tensor:
    """A response to each prompt, `[B, 1 + DIGITS]`."""
    tokens = prompts[:, None]
    for _ in range(DIGITS):
        p = logits_of(mu, tokens)[0][:, -1].softmax(-1)
        tokens = torch.cat([tokens, p.multinomial(1, generator=g)], dim=1)
    return tokens


def reward(tokens: Tensor) -> Tensor:
    """R in {0, 1}."""
    return (tokens[:, 1:].sum(-1) % V == tokens[:, 0]).double()


@torch.no_grad()
def exact_j(theta: dict[str, Tensor]) -> float:
    """J_seq = E_{y~π}[R], eq. (1), over all V^DIGITS responses to each prompt."""
    every = torch.tensor(list(itertools.product(range(V), repeat=1 + DIGITS)))
    return float((logp(theta, every)[0].sum(-1).exp() * reward(every)).sum() / V)


def train(replay: str, steps: int = 60, groups: int = 24, size: int = 16, lr: float = 0.005) -> Iterator[float]:
    """Yield J of π before the first global step and after each."""
    g = torch.Generator().manual_seed(0)
    theta = {name: w.requires_grad_() for name, w in policy().items()}
    optimizer = torch.optim.Adam(theta.values(), lr=lr)
    yield exact_j(theta)
    for _ in range(steps):
        mu, prompts = fp8(theta), torch.randint(V, (groups,), generator=g)
        tokens = sample(mu, prompts.repeat_interleave(size), g)
        mask = (torch.arange(1 + DIGITS) > 0).expand(tokens.shape)
        advantage = group_advantage(reward(tokens).view(groups, size)).view(-1, 1)
        with torch.no_grad():
            logp_mu, routes_mu = logp(mu, tokens)
            _, routes_old = logp(theta, tokens)
            routes = {"none": None, "R2": routes_old, "R3": routes_mu}[replay]  # e of eq. (6)
            logp_old, _ = logp(theta, tokens, routes)
        for rows in torch.arange(len(tokens)).chunk(N):
            logp_theta, _ = logp(theta, tokens[rows], None if routes is None else routes[rows])
            weights = token_weights(logp_theta, logp_old[rows], logp_mu[rows], advantage[rows])
            optimizer.zero_grad()
            minirl_loss(logp_theta, weights, mask[rows]).backward()
            optimizer.step()
        yield exact_j(theta)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="MiniRL from scratch")
    parser.add_argument("replay", nargs="?", default="none", choices=("none", "R2", "R3"))
    for step, j in enumerate(train(parser.parse_args().replay)):
        if step % 10 == 0:
            print(f"step {step:3}   J = {j:.3f}")
