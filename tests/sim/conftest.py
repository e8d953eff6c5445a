"""Fixtures of the simulator's tests: tiny settings, scenes, shipped recipes, and the slow reference beside them."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact.scene import MODES, build, engines, grow
from firstorder.sim.exact.staleness import path
from firstorder.sim.tasks import task_of
from firstorder.sim.tasks.task import rows

sys.path.insert(0, str(Path(__file__).parent))  # chains.py

EXACT = runpy.run_path(str(Path(__file__).parents[1] / "tolerances.py"))["EXACT"]
SMALL = {
    "vocab": 3,
    "horizon": 3,
    "prompts": 2,
    "prompt_length": 2,
    "layers": 2,
    "experts": 4,
    "top_k": 2,
    "width": 4,
    "expert_width": 3,
    "numerics": {"kind": "noise", "scale": 0.2},
}
BOUNDS = {
    "dapo": ["clip.low=0.05", "clip.high=0.05"],
    "m2po": ["clip.low=0.05", "clip.high=0.05", "clip.budget=0.05"],
    "ctpo": ["clip.low=0.05", "clip.high=0.1"],
    "gmpo": ["clip.low=0.05", "clip.high=0.05"],
    "cispo": ["clip.low=0.1", "clip.high=0.1"],
    "gspo": ["clip.low=0.05", "clip.high=0.05"],
    "rspo": ["clip.low=0.05", "clip.high=0.05", "ratio.router_floor=0.9"],
    "tis": ["correction.high=1.05"],
    "minirl-tis": ["correction.high=1.05"],
    "icepop": ["correction.low=0.9", "correction.high=1.1"],
    "tis-mean-one": ["correction.high=1.05"],
    "tis-two-sided": ["correction.low=0.95", "correction.high=1.05"],
    "tis-rejection-geometric": ["correction.high=1.05", "rejection.low=0.95", "rejection.high=1.05"],
    "tis-rejection-k3": ["correction.high=1.05", "rejection.high=0.005"],
    "mis": ["rejection.high=1.1"],
    "mis-geometric": ["rejection.low=0.99", "rejection.high=1.01"],
    "opsm": ["rejection.high=0.01"],
    "trm": ["rejection.high=0.3"],
    "trm-avg": ["rejection.high=0.42"],
    "ppo-dual-clip": ["clip.cap=1.3"],
}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference():
    """The slow second implementation, `reference.py`."""
    spec = importlib.util.spec_from_file_location("sim_reference", Path(__file__).with_name("reference.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def same():
    """Asserts that two tensors hold the same numbers, up to the rounding of their dtype or a looser `rtol`."""

    def check(actual, expected, rtol=None):
        actual = torch.as_tensor(actual).detach()
        expected = torch.as_tensor(expected, dtype=actual.dtype).detach()
        assert actual.shape == expected.shape
        if actual.numel():
            rtol = EXACT[actual.dtype] if rtol is None else rtol
            torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))

    return check


@pytest.fixture(scope="session")
def small():
    """A simulator small enough for loops: 2 prompts, 15 responses each."""
    return lambda **changes: Sim(**(SMALL | changes))


@pytest.fixture(scope="session")
def make_recipe():
    """A shipped recipe with dotted overrides."""
    return lambda name, *changes: toml.build(Recipe, toml.override(toml.read(name), changes))


@pytest.fixture(scope="session")
def acting(make_recipe):
    """A shipped recipe with its bounds set so that every clip and correction acts in `small(staleness=2, lr=1.0)`."""
    return lambda name, *changes: make_recipe(name, *changes, *BOUNDS.get(name, []))


@pytest.fixture(scope="session")
def make_scene():
    """The scene that `measure` builds, with the targets of all modes."""

    def make(sim, modes=MODES):
        theta_old = starting_weights(sim, torch.tensor([sim.seed]))
        pair = engines(sim, torch.arange(1))
        *_, theta = path(sim, pair, theta_old, sim.staleness)
        return build(sim, grow(sim), pair, theta_old, theta if sim.staleness else None, modes)

    return make


@pytest.fixture(scope="session")
def make_lab(reference):
    """The slow reference of the same settings."""

    def make(sim):
        weights = {n: w[0] for n, w in starting_weights(sim, torch.tensor([sim.seed])).items()}
        measured, others = ([tuple(row) for row in task_of(sim).prompts(r).tokens.tolist()] for r in rows(sim))
        return reference.Lab(sim, weights, measured, others)

    return make


@pytest.fixture(scope="session")
def pairs_of():
    """The (prompt, response) of every response of a tree, in its order."""

    def pairs(tree):
        found, every = [], tree.every
        for prompt, tokens, mask in zip(every.prompt, every.tokens, every.mask, strict=True):
            found.append((tuple(tree.opening[prompt].tolist()), tuple(tokens[mask].tolist())))
        return found

    return pairs
