"""A measurement makes each thing once, and keeps no batch that came in chunks."""

from collections import Counter

import pytest
import torch

from firstorder.sim.exact import measurement as module
from firstorder.sim.exact import world
from firstorder.sim.exact.compare import Shared
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.measurement import Measurement


@pytest.mark.parametrize("name", ["minirl-r3", "dapo", "m2po", "ppo-critic"])
def test_everything_that_is_reported_reads_one_batch(name, small, make_recipe, monkeypatch):
    made = Counter()
    for part in ("advantage_table", "token_stats", "signed_weights"):
        original = getattr(module, part)
        monkeypatch.setattr(module, part, lambda *a, part=part, original=original: made.update([part]) or original(*a))
    monkeypatch.setattr(Shared, "on_policy", lambda self, schedule: None)  # another recipe on another scene
    measure(make_recipe(name), small())
    assert made == {"advantage_table": 1, "token_stats": 1, "signed_weights": 1}


def test_chunks_are_weighed_again_rather_than_kept(small, make_scene, make_recipe, monkeypatch, same):
    scene, recipe = make_scene(small(staleness=1)), make_recipe("minirl-r3")
    whole = Measurement(scene=scene, recipe=recipe)
    assert list(whole.batches()) == [whole.batch]
    monkeypatch.setattr(world, "CHUNK_TOKENS", 20)
    chunked = Measurement(scene=scene, recipe=recipe)
    weights = torch.cat([batch.expected for batch in chunked.batches()], dim=1)
    same(weights, whole.batch.expected)
    same(chunked.update, whole.update)
    assert "batch" not in vars(chunked)


def test_a_recipe_without_replay_has_the_natural_target(small, make_scene, make_recipe):
    scene = make_scene(small())
    plain, replayed = (Measurement(scene=scene, recipe=make_recipe(name)) for name in ("minirl", "minirl-r3"))
    assert plain.gradient is plain.natural_gradient
    assert torch.equal(replayed.natural_gradient, plain.gradient)
    assert not torch.equal(replayed.gradient, plain.gradient)
