"""A second implementation: transformers' Qwen3-MoE, unpacked and padded, with its routers replaying by hand."""

import torch
from transformers import Qwen3MoeForCausalLM


class Reference:
    """A model of a folder in float32; routes are recorded at every forward."""

    def __init__(self, folder):
        self.model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self.gates = [layer.mlp.gate for layer in self.model.model.layers]
        self.seen = {}

    def score(self, tokens, temperature, replay=None):
        """log p of each token given those before it and entropy `[B, L]`, live or replayed routes `[B, L, M, K]`."""
        for number, gate in enumerate(self.gates):
            gate.forward = self._router(gate, number, replay)
        logits = self.model(tokens, use_cache=False).logits.double() / temperature
        every = logits.log_softmax(-1)
        logp = torch.zeros(tokens.shape, dtype=torch.float64)
        logp = torch.cat([logp[:, :1], every[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]], dim=1)
        entropy = -(every.exp() * every).sum(-1)
        routes = torch.stack([self.seen[n].view(*tokens.shape, -1) for n in range(len(self.gates))], dim=2)
        return logp, torch.cat([torch.zeros_like(entropy[:, :1]), entropy[:, :-1]], dim=1), routes

    def _router(self, gate, number, replay):
        def forward(hidden):
            logits = torch.nn.functional.linear(hidden.reshape(-1, gate.hidden_dim), gate.weight)
            probabilities = logits.softmax(-1)
            ids = probabilities.topk(gate.top_k, dim=-1).indices
            if replay is not None:
                given = replay.ids[:, :, number].flatten(0, 1)
                ids = torch.tensor(
                    [self._used(*row, replay) for row in zip(probabilities.tolist(), given.tolist(), strict=True)]
                )
            self.seen[number] = ids
            chosen = probabilities.gather(-1, ids)
            weights = chosen / chosen.sum(-1, keepdim=True)
            if replay is not None and replay.gates is not None:
                frozen = (ids == given).all(-1, keepdim=True)
                weights = torch.where(frozen, replay.gates[:, :, number].flatten(0, 1), weights)
            return logits, weights, ids

        return forward

    @staticmethod
    def _used(scores, given, replay):
        """The experts of one row, in plain arithmetic; margin and condition are numbers, or None."""
        best = sorted(range(len(scores)), key=lambda e: -scores[e])
        live, next_best = best[: len(given)], best[len(given)]
        weakest = scores[live[-1]]
        if given[0] < 0 or (replay.margin is not None and weakest - scores[next_best] >= float(replay.margin)):
            return live
        if replay.condition is None:
            return given
        kept = [e for e in given if scores[e] >= float(replay.condition) * weakest]
        return kept + [e for e in best if e not in kept][: len(given) - len(kept)]

    def gradients(self):
        """Gradients under the names of the folder's safetensors: one tensor an expert and projection."""
        found = {}
        for name, parameter in self.model.named_parameters():
            stem, _, leaf = name.rpartition(".")
            for expert in range(parameter.shape[0] if ".experts" in name else 0):
                one = parameter.grad[expert]
                if leaf == "down_proj":
                    found[f"{stem}.{expert}.down_proj.weight"] = one
                else:
                    gate, up = one.chunk(2)
                    found |= {f"{stem}.{expert}.gate_proj.weight": gate, f"{stem}.{expert}.up_proj.weight": up}
            if ".experts" not in name:
                found[name] = parameter.grad
        return found
