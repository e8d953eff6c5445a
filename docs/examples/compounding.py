"""How much of what replay does builds up along a prefix: R3 at every token of a context, against R3 at its last token.

    python docs/examples/compounding.py [POLICIES]

On a tree of short responses the policy carries a state, so that replayed experts at earlier tokens change what a later
token reads. `whole` is π^R3: μ's experts at every token of every context. `own` keeps the states of the live pass and
replays μ's experts at the token that is run alone, as every world without a state does. `live` replays nothing.
"""

import sys
from typing import Any

import torch

from firstorder.core.routing import Replay
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.edges import Given, Routes, kl
from firstorder.sim.exact.forward import run
from firstorder.sim.exact.scene import engines, grow
from firstorder.sim.exact.tree import Tree
from firstorder.sim.model.chunks import chunked_step
from firstorder.sim.model.policy import Model, initial_state, load

HORIZONS = (2, 3, 4, 5)


def own(model: Model, tree: Tree, replay: Routes) -> torch.Tensor:
    """Log-probs `[M, N, V]` with replay at the last token of each context alone, every state from the live pass."""
    state, found, start = initial_state(model, tree.prompts), [], 0
    for depth, (tokens, keys) in enumerate(zip(tree.leads, tree.hashes, strict=True)):
        if depth:
            state = state.repeat_interleave(tree.widths[depth] // tree.widths[depth - 1], dim=1)
        *lead, last = range(len(tokens))
        for place in lead:
            state = chunked_step(model, state, tokens[place], keys[place], None).state
        ids = replay.contexts[:, start : start + tree.widths[depth]]
        found.append(chunked_step(model, state, tokens[last], keys[last], Replay(ids=ids)).logp)
        state = chunked_step(model, state, tokens[last], keys[last], None).state
        start += tree.widths[depth]
    return torch.cat(found, dim=1)


def figures(horizon: int, policies: int) -> dict[str, dict[str, list[float]]]:
    """Size of the replay bias in units of reward, KL(μ‖π) in nats a token: mean over seeds and its standard error."""
    sim, seeds = Sim(horizon=horizon), torch.arange(policies)
    tree: Any = grow(sim)
    weights, engine = starting_weights(sim, seeds), engines(sim, seeds)
    with torch.no_grad():
        mu, trainer = run(load(weights, engine.mu, sim), tree), load(weights, engine.pi, sim)
        said = {
            "live": run(trainer, tree).logp,
            "own": own(trainer, tree, mu.routes),
            "whole": run(trainer, tree, Given(routes=mu.routes)).logp,
        }
    reached = tree.visits(mu.logp.exp())
    natural = objectives.value(said["live"], tree)
    return {
        name: {
            "bias": averaged((natural - objectives.value(logp, tree)).abs()),
            "kl": averaged((reached * kl(mu.logp, logp)).sum(-1) / reached.sum(-1)),
        }
        for name, logp in said.items()
    }


def averaged(x: torch.Tensor) -> list[float]:
    """Mean and standard error."""
    return [float(x.mean()), float(x.std() / len(x) ** 0.5)]


def table(policies: int) -> list[str]:
    """Markdown: a row a horizon."""
    lines = ["| T | bias, own | bias, whole | KL, live | KL, own | KL, whole |", "|---" * 6 + "|"]
    for horizon in HORIZONS:
        of = figures(horizon, policies)
        cells = [of[name]["bias"] for name in ("own", "whole")] + [of[name]["kl"] for name in of]
        lines.append(
            f"| {horizon} | " + " | ".join(f"{1e3 * mean:.2f} ± {1e3 * error:.2f}" for mean, error in cells) + " |"
        )
    return lines


if __name__ == "__main__":
    print("in thousandths, of a unit of reward and of a nat a token")
    print("\n".join(table(int(sys.argv[1]) if len(sys.argv) > 1 else 128)))
