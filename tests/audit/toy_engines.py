"""A small language model with experts, twice: as a rollout engine that samples and as a trainer that scores."""

from dataclasses import dataclass, replace

import torch

VOCAB, WIDTH, EXPERTS, TOP_K, LAYERS = 31, 16, 8, 2, 2


@dataclass(frozen=True)
class Engine:
    """Weights and what an engine gets wrong.

    Args:
        seed: of the weights.
        noise: standard deviation of the rounding of each logit.
        router_noise: of each router score.
        padding: what the padding of a response adds to its logits, by the share of the row.
        dropout: of features, anew at every call.
        temperature, top_p: of the distribution; 1.1 keeps all.
        moved: how far the weights are from those of the seed, in the direction of another.
        salt: of its rounding.
    """

    seed: int = 0
    noise: float = 0.0
    router_noise: float = 0.0
    padding: float = 0.0
    dropout: float = 0.0
    temperature: float = 1.0
    top_p: float = 1.1
    moved: float = 0.0
    salt: int = 0

    @property
    def weights(self):
        sizes = {"embed": (VOCAB, WIDTH), "mix": (WIDTH, WIDTH), "head": (WIDTH, VOCAB)}
        sizes |= {"router": (LAYERS, WIDTH, EXPERTS), "experts": (LAYERS, EXPERTS, WIDTH, WIDTH)}

        def made(seed):
            g = torch.Generator().manual_seed(seed)
            return {name: torch.randn(size, generator=g, dtype=torch.float64) for name, size in sizes.items()}

        one, other = made(self.seed), made(self.seed + 1000)
        return {name: x + self.moved * other[name] for name, x in one.items()}

    def run(self, tokens, lengths=None):
        """log p of every next token `[B, L, V]`, and the experts `[B, L, M, K]`."""
        w = self.weights
        length = tokens.shape[-1]
        ago = torch.arange(length)[:, None] - torch.arange(length)
        recent = torch.where(ago >= 0, 0.6 ** ago.clamp(min=0).double(), 0.0)
        h = torch.tanh(recent @ w["embed"][tokens] @ w["mix"] / WIDTH**0.5)
        if self.dropout:
            h = h * (torch.rand_like(h) > self.dropout)
        g = torch.Generator().manual_seed(int(tokens.sum()) + self.salt)  # rounding is a function of the batch
        routes = []
        for layer in range(LAYERS):
            scores = h @ w["router"][layer]
            scores = scores + self.router_noise * torch.randn(scores.shape, generator=g, dtype=torch.float64)
            ids = scores.topk(TOP_K, sorted=False).indices
            gates = scores.gather(-1, ids).softmax(-1)
            each = torch.einsum("blw,ewv->blev", h, w["experts"][layer] / WIDTH**0.5)
            chosen = each.gather(-2, ids[..., None].expand(*ids.shape, WIDTH))
            h = h + torch.tanh((gates[..., None] * chosen).sum(-2))
            routes.append(ids)
        logits = 1.5 * h @ w["head"] / WIDTH**0.5
        if self.padding and lengths is not None:
            share = 1 - lengths.double() / length
            logits = logits + self.padding * share[:, None, None] * torch.linspace(-1, 1, VOCAB).double()
        out = self.cut((logits / self.temperature).softmax(-1))
        logits = logits + self.noise * torch.randn(logits.shape, generator=g, dtype=torch.float64)
        logp = (logits / self.temperature).masked_fill(out, -torch.inf).log_softmax(-1)
        return logp, torch.stack(routes, dim=-2)

    def cut(self, p):
        """All but the likeliest tokens of mass `top_p`."""
        p, order = p.sort(-1, descending=True)
        return torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, p.cumsum(-1) - p >= self.top_p)

    def sample(self, count=24, prompt=3, shortest=4, longest=40, seed=0):
        """Tokens, mask, log-probs and routes, as a rollout engine returns them."""
        g = torch.Generator().manual_seed(seed)
        lengths = torch.randint(prompt + shortest, prompt + longest, (count,), generator=g)
        tokens = torch.randint(VOCAB, (count, int(lengths.max())), generator=g)
        for t in range(prompt, tokens.shape[-1]):
            logp = replace(self, noise=0.0, router_noise=0.0).run(tokens[:, :t])[0][:, -1]
            tokens[:, t] = torch.multinomial(logp.exp(), 1, generator=g)[:, 0]
        at = torch.arange(tokens.shape[-1])
        tokens = torch.where(at < lengths[:, None], tokens, 0)
        mask = (at >= prompt) & (at < lengths[:, None])
        logp, routes = self.logp(tokens), self.run(tokens)[1].to(torch.int16)
        routes = torch.where((at < lengths[:, None] - 1)[..., None, None], routes, -1)
        return {"tokens": tokens, "mask": mask, "logp_mu": torch.where(mask, logp, 0.0), "routes": routes}

    def logp(self, tokens, lengths=None):
        """log p(token t | tokens < t), `[B, L]`."""
        following = self.run(tokens, lengths)[0][:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        return torch.cat([torch.zeros(len(tokens), 1, dtype=torch.float64), following], dim=1)

    def score(self, tokens, lengths, temperature):
        """As a trainer answers."""
        return replace(self, temperature=temperature).logp(tokens, lengths)
