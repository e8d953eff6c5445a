from dataclasses import replace

import pytest
from pydantic import ValidationError

from firstorder.core.errors import ConfigError
from firstorder.core.method.contradictions import contradictions
from firstorder.core.method.parts import SCOPES
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.surrogate import receipts, token_weights
from firstorder.core.settings import toml
from firstorder.core.training.inert import inert_parts, notes

NAMES = toml.shipped()
UNSUPPORTED = {"pr2"}


def make(*assignments):
    return toml.build(Recipe, toml.override({}, assignments))


def shipped(name):
    return toml.build(Recipe, toml.read(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_named_sourced_and_scoped(name):
    recipe = shipped(name)
    assert recipe.about.name == name
    assert recipe.about.summary
    assert recipe.about.source
    assert (recipe.about.unsupported is not None) == (name in UNSUPPORTED)
    if name not in UNSUPPORTED:
        assert recipe.about.scope == recipe.scope


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_survives_being_written_and_read(name, tmp_path):
    recipe = shipped(name)
    file = tmp_path / "copy.toml"
    file.write_text(toml.dump(recipe.model_dump()), encoding="utf-8")
    assert toml.build(Recipe, toml.read(str(file))) == recipe


def test_every_shipped_recipe_says_something_of_its_own():
    summaries = [shipped(name).about.summary for name in NAMES]
    assert len(set(summaries)) == len(summaries)


@pytest.mark.parametrize("mode", ["none", "r2", "r3"])
@pytest.mark.parametrize("updates", [1, 2, 4, 8])
def test_the_grid_is_minirl_at_a_fixed_minibatch(mode, updates):
    recipe, base = shipped(f"minirl-{mode}-n{updates}"), shipped("minirl")
    assert recipe.schedule.minibatches == updates
    assert recipe.schedule.prompts * recipe.schedule.group_size == 1024 * updates
    assert recipe.router_replay.mode == {"none": "disabled", "r2": "R2", "r3": "R3"}[mode]
    for part in ("advantage", "ratio", "correction", "clip", "aggregation"):
        assert getattr(recipe, part) == getattr(base, part)


@pytest.mark.parametrize(
    ("assignments", "weight_scope", "scope"),
    [
        (['advantage.baseline="none"'], "token", "token"),
        ([], "token", "group"),
        (["advantage.baseline=value", "advantage.gae_lambda=0.5", "schedule.group_size=1"], "token", "token"),
        (['advantage.baseline="none"', "ratio.span=prefix"], "sequence", "sequence"),
        (["correction.kind=vespo"], "sequence", "group"),
        (
            ["correction.kind=truncate", "correction.span=sequence", "correction.high=2.0"],
            "sequence",
            "group",
        ),
        (["aggregation.kind=token_mean"], "batch", "batch"),
        (["correction.kind=mean_kl", "correction.high=0.1"], "sequence", "group"),
        (["rejection.kind=k3", "rejection.high=0.1"], "token", "group"),
        (["rejection.kind=k3", "rejection.over=max", "rejection.high=0.1"], "sequence", "group"),
        (["advantage.scale=whiten"], "token", "batch"),
        (["correction.kind=ratio", "correction.mean_one=true"], "batch", "batch"),
        (["ratio.span=turn"], "sequence", "group"),
        (["clip.kind=gmpo", 'advantage.baseline="none"'], "sequence", "sequence"),
        (["clip.kind=ctpo", "ratio.span=prefix"], "sequence", "group"),
        (["clip.kind=m2po", 'advantage.baseline="none"'], "batch", "batch"),
    ],
)
def test_the_scope_is_the_widest_that_a_part_reads(assignments, weight_scope, scope):
    recipe = make(*assignments)
    assert (recipe.weight_scope, recipe.scope) == (weight_scope, scope)
    assert make(*assignments, f"about.scope={scope}").about.scope == scope
    wrong = next(s for s in SCOPES if s != scope)
    with pytest.raises(ConfigError, match=f"about.scope = {wrong} but .* make it {scope}"):
        make(*assignments, f"about.scope={wrong}")


CONTRADICTIONS = [
    (["terms.reference_estimator=k2"], "reference_estimator = k2 is read beside terms.reference_kl only, got .* = 0"),
    (["terms.squared_of=theta/old"], "squared_of = theta/old is read beside terms.squared_log_ratio only, got .* = 0"),
    (["advantage.std=true", 'advantage.baseline="none"'], "got advantage.baseline = none; choose group_mean"),
    (["advantage.std=true", "advantage.baseline=value"], "got advantage.baseline = value; choose group_mean"),
    (["advantage.gae_lambda=0.9"], "gae_lambda = 0.9 is read by baseline value only, got .* = group_mean"),
    (["critic.lr=0.1"], r"\[critic\] trains the baseline value only, got advantage.baseline = group_mean"),
    (["schedule.group_size=1"], "needs schedule.group_size >= 2, got 1"),
    (["ratio.steps=2"], "ratio.steps = 2 is read by span forward only"),
    (['ratio.of="none"', "ratio.span=prefix"], "ratio.span = prefix has no ratio to span"),
    (["clip.kind=ppo", "ratio.of=old/mu"], "clip.kind = ppo bounds a ratio of theta"),
    (["clip.kind=gspo"], "bounds the geometric ratio, got ratio.span = token; set ratio.span = geometric or use ppo"),
    (["clip.kind=ctpo"], "clip.kind = ctpo bounds the prefix ratio, got ratio.span = token"),
    (["clip.kind=gmpo", "ratio.span=sequence"], "clip.kind = gmpo bounds the token ratio, got ratio.span = sequence"),
    (["clip.kind=m2po", "ratio.of=old/mu"], "clip.kind = m2po bounds a ratio of theta, got ratio.of = old/mu"),
    (["clip.budget=0.1"], "clip.budget = 0.1 is read by clip.kind = m2po only, got none"),
    (["clip.cap=4"], "clip.cap = 4.0 is read by clip.kind = dual only, got none"),
    (["clip.temperature=[1.0, 2.0]"], r"clip.temperature = \[1.0, 2.0\] is read by clip.kind = sapo only, got none"),
    (["ratio.router_floor=0.9", "ratio.of=old/mu"], "router_floor = 0.9 rescales a ratio of theta, got .* = old/mu"),
    (["clip.kind=minirl", "clip.low=1.5"], "clip.low must be at most 1"),
    (["correction.kind=mask", "correction.low=5", "correction.high=2"], "correction.low must be below"),
    (["correction.kind=truncate"], "truncate without a bound does nothing"),
    (["correction.mean_one=true"], "correction.mean_one has no correction to divide"),
    (["rejection.kind=k3"], "rejection.kind = k3 without a bound does nothing"),
    (["rejection.kind=k1", "rejection.low=1", "rejection.high=-1"], "rejection.low must be below rejection.high"),
    (["rejection.kind=k3", "rejection.high=1", "correction.high=4"], "are not read by correction.kind = none"),
    (["optimizer.lr=2", "optimizer.weight_decay=1"], "optimizer.lr x optimizer.weight_decay = 2 takes more than all"),
    (["advantage.baseline=value", "critic.lr=2", "critic.weight_decay=1"], "critic.lr x critic.weight_decay = 2 takes"),
    (["schedule.prompts=65", "schedule.minibatches=2"], "must be a multiple of schedule.minibatches = 2"),
    (["router_replay.margin=0.1"], r"\[router_replay\] has margin=0.1, but router_replay.mode = disabled"),
    (
        ["router_replay.mode=R3", "router_replay.gates=replayed", "router_replay.condition=0.5"],
        "router_replay.condition = 0.5 brings in experts that have no replayed gate",
    ),
    (["about.scope=token"], "about.scope = token but"),
]


@pytest.mark.parametrize(("assignments", "message"), CONTRADICTIONS)
def test_parts_that_contradict_each_other_are_refused(assignments, message):
    with pytest.raises(ConfigError, match=message):
        make(*assignments)


def test_every_known_contradiction_is_provoked_here():
    provoked = set()
    for assignments, _ in CONTRADICTIONS:
        tree = toml.override({}, assignments)
        sections = {k: Recipe.model_fields[k].annotation.model_validate(v) for k, v in tree.items()}
        broken = [b for b, _ in contradictions(Recipe.model_construct(**{**dict(Recipe()), **sections}))]
        provoked |= {i for i, b in enumerate(broken) if b}
    assert provoked == set(range(len(contradictions(Recipe()))))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("clip.hihg=0.3", "unknown key 'clip.hihg'; did you mean 'high'"),
        ("clop.kind=ppo", "unknown key 'clop'; did you mean 'clip'"),
        ("router_replay.mode=R4", "router_replay.mode: .*'R4'"),
        ("schedule.steps=0", "schedule.steps: .*got 0"),
        ("clip.high=nan", "clip.high: .*got nan"),
        ("optimizer.lr=inf", "optimizer.lr: .*got inf"),
        ("correction.high=nan", "correction.high: .*got nan"),
        ("ratio.router_floor=1.0", "ratio.router_floor: .*got 1.0"),
        ("clip.budget=0", "clip.budget: .*got 0"),
        ("correction.positive=[nan, 1.0]", "correction.positive.0: .*got nan"),
        ("optimizer.betas=[0.9, inf]", "optimizer.betas.1: .*got inf"),
        ("advantage.gae_lambda=1.1", "advantage.gae_lambda: .*got 1.1"),
        ("critic.learning_rate=1.0", "unknown key 'critic.learning_rate'"),
    ],
)
def test_a_wrong_key_or_value_is_named(assignment, message):
    with pytest.raises(ConfigError, match=message):
        make(assignment)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        shipped("minirl").clip.high = 1.0


@pytest.mark.parametrize(
    ("name", "stale", "mismatch", "parts"),
    [
        ("minirl", True, True, []),
        ("minirl", False, True, ["clip.kind = minirl"]),
        ("minirl-r2", False, True, ["clip.kind = minirl", "router_replay.mode = R2"]),
        ("minirl-r2", True, False, []),
        ("minirl-r3", False, True, ["clip.kind = minirl"]),
        ("minirl-r3", False, False, ["ratio.of = theta/mu", "clip.kind = minirl", "router_replay.mode = R3"]),
        ("minirl-r3", True, False, []),
        ("grpo", False, True, ["ratio.of = theta/old", "clip.kind = ppo"]),
        ("tis", True, False, ["correction.kind = truncate"]),
        ("minirl-tis", True, False, []),
        ("trm", True, False, []),
        ("rspo", False, True, ["ratio.of = theta/old", "ratio.router_floor = 0.8", "clip.kind = gmpo"]),
        ("rspo", True, False, []),
        ("dppo-tv", False, True, []),
        ("dppo-tv", False, False, ["ratio.of = theta/mu", "clip.kind = tv"]),
        ("trm", False, False, ["ratio.of = theta/mu", "rejection.kind = kl"]),
        ("trm-avg", False, False, ["ratio.of = theta/mu", "rejection.kind = kl"]),
        ("m2po", False, False, ["ratio.of = theta/mu", "clip.kind = m2po"]),
        ("ctpo", False, True, []),
        ("reinforce", False, False, []),
        (
            "minirl-r3-margin",
            False,
            False,
            ["ratio.of = theta/mu", "clip.kind = minirl", "router_replay.mode = R3 margin=0.05"],
        ),
        ("total-recall", False, False, ["ratio.of = theta/mu", "clip.kind = minirl"]),
    ],
)
def test_parts_that_cannot_act_are_named(name, stale, mismatch, parts):
    found = inert_parts(shipped(name), stale=stale, mismatch=mismatch)
    assert [sentence.split(":")[0] for sentence in found] == parts


@pytest.mark.parametrize("name", ["minirl", "minirl-r2", "grpo", "gspo", "tis", "rspo", "m2po", "ctpo", "minirl-r3"])
@pytest.mark.parametrize("mismatch", [True, False])
def test_a_ratio_clip_or_correction_called_inert_changes_no_weight(name, mismatch, make_stats):

    recipe, stats = shipped(name), make_stats()
    stats = replace(stats, logp_theta=stats.logp_old, router_shift=0 * stats.router_shift)
    if not mismatch:
        stats = replace(stats, logp_mu=stats.logp_old)
    acted = {part: int(n) for part, (n, _) in receipts(stats, token_weights(stats, recipe), recipe).items()}
    found = " ".join(inert_parts(recipe, stale=False, mismatch=mismatch))
    if "clip.kind" in found:
        assert acted["clip_upper"] == acted["clip_lower"] == 0
    if "ratio.of" in found:
        assert acted["ratio_not_one"] == 0
    if "correction.kind" in found:
        assert acted["corrected"] == 0


def test_a_rule_of_replay_is_inert_with_its_mode_and_constant_gates_never_are():
    rules = {"margin=0.1": True, "condition=0.5": True, "gates=replayed": False}
    for rule, idle in rules.items():
        recipe = make("router_replay.mode=R2", f"router_replay.{rule}", "ratio.of=theta/mu")
        found = [line for line in inert_parts(recipe, stale=False) if line.startswith("router_replay")]
        assert found == [f"router_replay.mode = R2 {rule}: theta equals theta_old, its own experts"] * idle
        assert bool(notes(recipe)) != idle
        assert not any(line.startswith("router_replay") for line in inert_parts(recipe, stale=True))


def test_a_mask_by_divergence_is_not_called_inert_for_the_policies_it_does_not_read():
    recipe = make("rejection.kind=kl", "rejection.over=max", "rejection.high=0.05")
    assert recipe.rejection.of == "old/mu"
    assert inert_parts(recipe, stale=True, mismatch=False) == []
