"""What a sweep saves by training the cells of a grid as arms of one ensemble, and whether it knows how large one is."""

import itertools
import os
import shutil
import subprocess
import sys

import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.sim.config import Sim
from firstorder.sim.sweep.ensemble import Cell, Ensemble
from firstorder.sim.sweep.plan import PROCESS, bytes_of

SEEDS = (1, 4)
SETTINGS = ["schedule.prompts=4", "schedule.group_size=8", "optimizer.lr=0.003"]
PEAK = """
from math import inf

import torch
from firstorder.core import memory
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import train
from firstorder.core.method.recipe import Recipe
from firstorder.sim.training.backend import SimBackend
from firstorder.sim.config import Sim

torch.set_num_threads(1)
arms = (Arm(recipe=Recipe.model_validate({recipe}), members={members}),)
loaded = memory.peak()
train(arms, SimBackend(Sim(evaluate_every=0), arms, torch.arange({members})))
print(loaded, memory.peak())
"""


def grid(members, steps):
    points = itertools.product(("minirl", "minirl-r2", "minirl-r3", "grpo"), (0.1, 0.2, 0.3, 0.4))
    settings = [*SETTINGS, f"schedule.steps={steps}"]
    return [
        Cell(
            name=f"{place:04d}",
            point={},
            recipe=toml.build(Recipe, toml.override(toml.read(name), [*settings, f"clip.high={high}"])),
            sim=Sim(members=members),
        )
        for place, (name, high) in enumerate(points)
    ]


def trained(ensembles, out):
    threads = torch.get_num_threads()
    shutil.rmtree(out, ignore_errors=True)
    for cells in ensembles:
        Ensemble(cells=tuple(cells), out=out).run(1)
    torch.set_num_threads(threads)
    assert len(os.listdir(out / "cells")) == sum(map(len, ensembles))


@pytest.mark.parametrize("members", SEEDS)
def test_a_grid_as_one_ensemble_beside_cell_after_cell(members, in_turns, benchmarking, tmp_path):
    cells = grid(members, 10) if benchmarking else grid(members, 1)[:2]
    timed = {
        f"a_grid_of_16_cells_as_one_ensemble,_seeds_{members}": lambda: trained([cells], tmp_path / "out"),
        "cell_after_cell": lambda: trained([[cell] for cell in cells], tmp_path / "out"),
    }
    in_turns(rounds=5, **timed)


def test_the_estimated_memory_of_an_ensemble_is_what_it_takes():
    """Of an update, 4 members of 64 x 16 responses; that of an exact evaluation is measured elsewhere."""
    recipe = toml.build(Recipe, toml.override(toml.read("minirl-r3"), ["schedule.steps=1"]))
    script = PEAK.format(recipe=recipe.model_dump(), members=4)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded, peak = map(int, done.stdout.split())
    estimate = bytes_of(Sim(evaluate_every=0, members=4), recipe.schedule, 1)
    assert peak <= estimate
    assert peak - loaded >= 0.6 * (estimate - PROCESS)
