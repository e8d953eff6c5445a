"""What a split costs: twenty recipes at once beside one after the other, and a later minibatch beside the first."""

import pytest

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read
from firstorder.sim.exact.steps import splits
from firstorder.sim.trials.long import BASE

TWENTY = (
    "minirl",
    "minirl-r2",
    "minirl-r3",
    "minirl-no-is",
    "minirl-no-clip",
    "minirl-r2-no-clip",
    "minirl-r3-no-clip",
    "minirl-r3-no-is",
    "minirl-length-norm",
    "minirl-r3-length-norm",
    "minirl-tis",
    "reinforce",
    "reinforce-is",
    "grpo",
    "dr-grpo",
    "dapo",
    "cispo",
    "icepop",
    "decoupled-ppo",
    "tis",
)


@pytest.fixture(scope="module")
def sim(benchmarking):
    """256 contexts and responses of 512 tokens, or a few where nothing is timed."""
    condition = BASE if benchmarking else BASE.but(problems=1, horizon=8, sim=(("coldstart", "none"), ("width", 4)))
    return condition.world(range(1))


def recipes():
    return [build(Recipe, read(name)) for name in TWENTY]


def test_twenty_recipes_at_once_beside_each_alone(in_turns, sim):
    splits(recipes()[:1], sim)  # the cold start
    in_turns(
        rounds=3,
        at_once=lambda: splits(recipes(), sim),
        one_after_the_other=lambda: [splits([one], sim) for one in recipes()],
    )


def test_a_later_minibatch_beside_the_first(in_turns, sim):
    splits(recipes()[:1], sim)
    in_turns(
        rounds=3,
        first=lambda: splits(recipes(), sim, [0]),
        third=lambda: splits(recipes(), sim, [2]),
    )
