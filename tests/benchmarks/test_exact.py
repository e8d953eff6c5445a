"""What exactness costs: the tree against two ways of doing without it, ten recipes at once, and memory."""

import json
import subprocess
import sys

import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build as build_recipe
from firstorder.core.settings.toml import read
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives, scene
from firstorder.sim.exact.fit import compare
from firstorder.sim.exact.forward import run
from firstorder.sim.exact.measurement import update
from firstorder.sim.model import policy

SIM = Sim(vocab=5, horizon=6, prompts=4)
TEN = (
    "minirl",
    "minirl-r2",
    "minirl-r3",
    "minirl-no-is",
    "minirl-length-norm",
    "grpo",
    "gspo",
    "icepop",
    "vespo",
    "ctpo",
)
LOOPED = 100


@pytest.fixture(scope="module")
def world():
    tree = scene.grow(SIM)
    weights = policy.initial_weights(SIM, torch.tensor([0]))
    leaves = {name: w.requires_grad_() for name, w in weights.items()}
    pair = scene.engines(SIM, torch.tensor([0]))
    return tree, leaves, pair


def objective_of_tree(world):
    tree, leaves, pair = world
    done = run(policy.load(leaves, pair.pi, SIM), tree)
    return objectives.value(done.logp, tree).sum()


def sequences(world, chosen, together):
    """J over some responses, each run on its own or all in one padded batch; no prefix is shared."""
    tree, leaves, pair = world
    model, every = policy.load(leaves, pair.pi, SIM), tree.every
    total = torch.zeros((), dtype=torch.float64)
    for rows in [chosen] if together else chosen.split(1):
        length = SIM.horizon if together else int(every.lengths[rows])
        prompt, tokens = tree.opening[every.prompt[rows]], every.tokens[rows]
        inputs = torch.cat([prompt, tokens[:, : length - 1]], dim=1)
        state, columns = policy.initial_state(model, len(rows)), []
        for position in range(inputs.shape[1]):
            done = policy.step(model, state, inputs[:, position], inputs[:, position])
            state = done.state
            if position >= SIM.prompt_length - 1:
                columns.append(done.logp[0])
        logp = torch.stack(columns, dim=1).gather(-1, tokens[:, :length, None])[..., 0]
        total = total + (torch.where(every.mask[rows, :length], logp, 0.0).sum(-1).exp() * every.rewards[rows]).sum()
    return total / SIM.prompts


def gradient(world, value):
    return torch.autograd.grad(value, list(world[1].values()))


def test_the_tree_beside_a_loop_over_sequences(in_turns, world):
    chosen = torch.linspace(0, len(world[0].path) - 1, LOOPED).long()
    in_turns(
        scale=len(world[0].path) / LOOPED,  # a loop is linear in its sequences
        rounds=5,
        tree=lambda: gradient(world, objective_of_tree(world)),
        loop_over_sequences=lambda: gradient(world, sequences(world, chosen, together=False)),
    )


def test_the_tree_beside_a_padded_batch_of_all_sequences(in_turns, world):
    everyone = torch.arange(len(world[0].path))
    padded = sequences(world, everyone, together=True)
    torch.testing.assert_close(padded, objective_of_tree(world), rtol=1e-12, atol=0)
    in_turns(
        rounds=5,
        tree=lambda: gradient(world, objective_of_tree(world)),
        padded_batch_of_all_sequences=lambda: gradient(world, sequences(world, everyone, together=True)),
    )


def test_the_loop_adds_up_to_the_padded_batch(world):
    chosen = torch.arange(0, len(world[0].path), 997)
    alone, together = (sequences(world, chosen, together=t) for t in (False, True))
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=0)


def test_ten_recipes_beside_a_bare_forward_and_backward(in_turns, world):
    tree, leaves, pair = world
    recipes = [build_recipe(Recipe, read(name)) for name in TEN]

    def bare():
        done = run(policy.load(leaves, pair.pi, SIM), tree)
        torch.autograd.grad(done.logp, list(leaves.values()), grad_outputs=torch.ones_like(done.logp))

    def together():
        built = scene.build(SIM, tree, pair, leaves)
        gradients = {mode: objectives.gradient(built, mode) for mode in scene.MODES}
        for recipe in recipes:
            mode = recipe.router_replay.mode
            objectives.values(built, mode)
            compare(update(built, recipe), gradients[mode])

    in_turns(rounds=7, bare_forward_and_backward=bare, ten_recipes=together)


def test_memory_is_linear_in_contexts(benchmarking, facts):
    """Peak resident memory of a whole measurement at 1.2e5 and, when benchmarking, 1.06e6 contexts."""
    for horizon in (10, 12) if benchmarking else (6,):
        contexts, peak = peak_memory(horizon)
        facts[f"peak memory at {contexts:,} contexts"] = f"{peak / 2**30:.2f} GiB"
        assert peak < 8 * 2**30


def peak_memory(horizon):
    script = (
        "import json;"
        "from firstorder.cli.main import run;"
        f"code = run(['measure', 'minirl-r3', '--set', 'sim.horizon={horizon}']);"
        "from firstorder.core import memory;"
        "from firstorder.sim.exact.size import count; from firstorder.sim.config import Sim;"
        f"print(json.dumps([code, count(Sim(horizon={horizon})), memory.peak()]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    code, contexts, peak = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    return contexts, peak
