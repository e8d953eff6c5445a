"""Small training runs, through the command line and without it."""

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.sim.config import Sim

SETTINGS = ["schedule.steps=4", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=0.01"]
SIM = Sim(vocab=4, horizon=3, prompts=2, pool=6, width=8, expert_width=8, evaluate_every=2)


def recipe(name, *more):
    return toml.build(Recipe, toml.override(toml.read(name), [*SETTINGS, "schedule.minibatches=2", *more]))


def train_command(out, *more):
    chosen = [
        x
        for s in (*SETTINGS, "schedule.steps=30", "sim.checkpoint_every=3", "sim.vocab=3", "sim.horizon=2")
        for x in ("--set", s)
    ]
    return ["train", "minirl-r3", *chosen, "--set", "sim.prompts=2", "--out", str(out), *more]


def logs_of(folder):
    return [(folder / f"{name}.jsonl").read_bytes() for name in ("metrics", "receipts")]
