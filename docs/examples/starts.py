"""What each cold start knows before the first step: exact J, entropy and length, means over policies.

Run it with the number of policies: python docs/examples/starts.py 8
"""

import sys

import torch

from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.forward import run
from firstorder.sim.exact.scene import engines, grow
from firstorder.sim.model.policy import load
from firstorder.sim.tasks import WORD_TASKS

STYLES = ("none", "terse", "verbose", "roundabout")


def figures(sim: Sim, policies: int) -> list[float]:
    """J on the measured prompts, entropy in nats a token and mean length in tokens, of π, over seeds 0, 1, ..."""
    seeds = torch.arange(policies)
    tree = grow(sim)
    with torch.no_grad():
        logp = run(load(starting_weights(sim, seeds), engines(sim, seeds).pi, sim), tree).logp
    chance = tree.visits(logp.exp())
    length = chance.sum(-1)
    entropy = (chance * -(logp.exp() * logp).sum(-1)).sum(-1) / length
    return [float(x.mean()) for x in (objectives.value(logp, tree), entropy, length)]


if __name__ == "__main__":
    policies = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    print("task     cold start  J      entropy  length")
    for task in WORD_TASKS:
        for style in STYLES:
            j, entropy, length = figures(Sim(task=task, coldstart=style), policies)
            print(f"{task:8} {style:11} {j:.3f}  {entropy:.3f}    {length:.2f}")
