"""What the tests of promote share: plans of the shipped recipes, and promotions with stand-ins for the evidence."""

import re

from firstorder.backends.promote import hardware, models, plan, timing
from firstorder.backends.promote.dry import PARTS, DryRun
from firstorder.backends.promote.promotion import Job, Promotion
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import assignment, build, read, source

GRID = [f"qwen3-30b-a3b-{mode}-n{n}" for mode in ("none", "r2", "r3") for n in (1, 2, 4, 8)]
GIB = 1 << 30
ESTIMATE = {"value": 0.0, "low": 0.0, "high": 0.0}
GATE = {
    "recipe": "0" * 64,
    "stable": False,
    "rule": "a rule",
    "cause": "no clip: a reason",
    "remedy": "clip.kind = minirl",
    "tried": {
        "horizon": 512,
        "length": 31744,
        "responses": None,
        "extent": {"seeds": 8, "first_seed": 3000, "updates": 600, "value": 0.5},
    },
    "extrapolation": {"said": "none: no border is known", "crossed": []},
    "target": {"kl": 1.5e-3, "flip_rate": 0.1, "source": "a paper"},
    "calibration": {"kl": 2e-3, "flip_rate": 0.05},
    "trials": {
        "the recipe": {
            "collapsed": ESTIMATE,
            "final_j_pi": ESTIMATE,
            "worst": {"gradient_error": 0.1, "gradient_error_natural": 0.2, "replay_bias": 0.0},
        }
    },
}
DRY_RUN = DryRun(
    memory=dict.fromkeys(PARTS, GIB),
    shardings=[{"name": "w", "whole": [2], "local": [1], "mesh": ["fsdp"], "placements": ["S(0)"]}],
    error=-0.001,
    seconds=1.0,
    resident=GIB,
)


def recipe_of(name):
    return build(Recipe, read(name))


def assigned(sets):
    return [assignment(each) for each in sets]


def engines(sets=()):
    return models.engines(assigned(["task.kind=sums", *sets]))


def planned(shape, name="qwen3-30b-a3b-r3-n2", world=64, gpu="h100", sets=()):
    return plan.plan(shape, recipe_of(name), *engines(sets)[:2], world, hardware.gpu(gpu))


def promotion_of(shape, name="qwen3-30b-a3b-r3-n2", sets=("task.kind=sums",), time=None, job=None):
    """A promotion over 64 ranks, unstable in the simulator."""
    recipe, where = recipe_of(name), planned(shape, name, sets=sets)
    titan, vllm, task = models.engines(assigned(sets))
    step = plan.step(shape, recipe, titan, vllm, where)
    titan, vllm = timing.patient(titan, vllm, step, [key for key, _ in assigned(sets)])
    return Promotion(
        recipe=recipe,
        source=source(name).encode(),
        shape=shape,
        titan=titan,
        vllm=vllm,
        task=task,
        plan=where,
        step=step,
        timing=timing.timing(recipe, titan, where, step, time),
        dry_run=DRY_RUN,
        gate=GATE,
        job=job or Job(),
    )


def setting(folder, name):
    """A number in settings.env of a bundle."""
    return int(re.findall(rf"{name}:=(\d+)", (folder / "settings.env").read_text())[0])
