"""A bundle as it goes to a cluster: dry runs against what is allocated, and the launchers on a small model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from firstorder.backends.promote import bundle, dry, models
from firstorder.backends.vllm.arguments import ROUTERS
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe, fingerprint
from firstorder.core.settings.toml import build, read

NAME = "qwen3-30b-a3b-r3-n2"
TASK = ["--set", "task.kind=reasoning-gym"]
GIB = 1 << 30


def dryruns(what):
    script = Path(__file__).with_name("dryruns.py")
    done = subprocess.run([sys.executable, script, what], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def shipped():
    return dryruns("shipped")


def evidence(name, stable):
    """A gate.json, so that nothing is trained here; `tests/sim/test_evidence.py` judges the gate."""
    share = {"value": 0.0 if stable else 1.0, "low": 0.0, "high": 1.0}
    worst = {"gradient_error": 0.1, "gradient_error_natural": 0.2, "replay_bias": 0.0}
    return {
        "recipe": fingerprint(build(Recipe, read(name))),
        "stable": stable,
        "rule": "a rule",
        "cause": None if stable else "no clip: a reason",
        "remedy": None if stable else "clip.kind = minirl",
        "tried": {
            "horizon": 512,
            "length": 31744,
            "responses": None,
            "extent": {"seeds": 8, "first_seed": 3000, "updates": 600, "value": 0.5},
        },
        "extrapolation": {"said": "none: no border is known", "crossed": []},
        "target": {"kl": 1.5e-3, "flip_rate": 0.1, "source": "a paper"},
        "calibration": {"kl": 2e-3, "flip_rate": 0.05},
        "trials": {"the recipe": {"collapsed": share, "final_j_pi": share, "worst": worst}},
    }


@pytest.fixture(scope="module")
def promoted(tmp_path_factory, shape, write_model):
    """All 48 layers over 64 ranks, and a rehearsal."""
    folder = tmp_path_factory.mktemp("promoted")
    (folder / "small").mkdir()
    small = write_model(folder / "small", shape)
    (folder / "gate.json").write_text(json.dumps(evidence(NAME, True)))
    words = ["--world", "64", "--evidence", str(folder / "gate.json"), "--rehearse", str(small), *TASK]
    assert run(["promote", NAME, *words, "--out", str(folder / "bundle")]) == 0
    return folder / "bundle"


def test_the_dry_run_holds_the_whole_model_in_little_time_and_memory(promoted):
    found = json.loads((promoted / "evidence/dryrun.json").read_text())
    assert found["seconds"] < 120  # of a processor, whatever else runs
    assert found["resident"] < 4 * GIB
    parameters = 0
    for one in found["shardings"]:
        size = 1
        for edge in one["whole"]:
            size *= edge
        parameters += size
    assert parameters == 30_532_122_624
    (w1,) = (s for s in found["shardings"] if s["name"] == "layers.47.moe.routed_experts.inner_experts.w1_EFD")
    assert (w1["whole"], w1["local"], w1["mesh"]) == ([128, 768, 2048], [2, 768, 2048], ["efsdp", "ep"])
    trainer = found["trainer"]
    assert trainer["parameters"] == trainer["gradients"] == pytest.approx(4 * parameters / 64, rel=1e-3)
    assert trainer["optimizer"] == pytest.approx(2 * trainer["parameters"], rel=1e-3)
    assert trainer["peak"] < found["plan"]["usable"]
    assert abs(trainer["error"]) < 0.01


def test_the_bundle_is_whole_and_says_so(promoted):
    manifest = json.loads((promoted / "manifest.json").read_text())["sha256"]
    held = bundle.manifest(promoted)
    assert manifest == {name: value for name, value in held.items() if name != "manifest.json"}
    assert build(Recipe, read(str(promoted / "recipe.toml"))) == build(Recipe, read(NAME))
    assert [path.name for path in promoted.parent.iterdir() if path.name.startswith(".")] == []


def test_its_launchers_have_run_as_they_are(promoted):
    acted = json.loads((promoted / "evidence/rehearsal.json").read_text())
    assert (acted["ranks"], acted["servers"]) == (2, 1)
    assert acted["metrics"]["step"] == 0
    assert abs(acted["metrics"]["kl"]) < 0.05  # bfloat16 on both sides
    assert 0 <= acted["metrics"]["route/flip_rate"] < 0.2
    assert acted["metrics"]["update/grad_norm"] >= 0
    text = (promoted / "train.sh").read_text()
    assert text == (bundle.TEMPLATES / "train.sh").read_text()  # nothing in it was filled in, or changed to run


def test_every_recipe_of_the_grid_runs_dry(shipped):
    assert len(shipped) == 12
    held = {json.dumps(one["memory"]) for one in shipped.values()}
    assert len(held) <= 2  # with and without replayed ids
    for one in shipped.values():
        assert one["memory"]["gradients"] == one["memory"]["parameters"] > 0


@pytest.mark.parametrize("name", [f"qwen3-30b-a3b-{mode}-n{n}" for mode in ("none", "r2", "r3") for n in (1, 2, 4, 8)])
def test_every_recipe_of_the_grid_becomes_a_bundle(name, shipped, monkeypatch, tmp_path, capsys):
    one = shipped[name]
    found = dry.DryRun(error=0.0, **{key: one[key] for key in ("memory", "shardings", "seconds", "resident")})
    monkeypatch.setattr(dry, "dry_run", lambda *given: found)
    (tmp_path / "gate.json").write_text(json.dumps(evidence(name, True)))
    words = [*TASK, "--world", "64", "--evidence", str(tmp_path / "gate.json"), "--out", str(tmp_path / "out")]
    assert run(["promote", name, *words]) == 0
    assert build(Recipe, read(str(tmp_path / "out/recipe.toml"))) == build(Recipe, read(name))
    inert = "Inert: clip.kind = minirl" in (tmp_path / "out/README.md").read_text()
    assert inert == name.endswith("n1")


def test_what_the_simulator_shows_unstable_needs_force(shipped, monkeypatch, tmp_path, capsys):
    one = shipped[NAME]
    found = dry.DryRun(error=0.0, **{key: one[key] for key in ("memory", "shardings", "seconds", "resident")})
    monkeypatch.setattr(dry, "dry_run", lambda *given: found)
    (tmp_path / "gate.json").write_text(json.dumps(evidence(NAME, False)))
    words = ["promote", NAME, *TASK, "--world", "64", "--evidence", str(tmp_path / "gate.json"), "--out"]
    capsys.readouterr()
    assert run([*words, str(tmp_path / "out")]) == 2
    refused = capsys.readouterr().err
    assert (
        f"shows {NAME} unstable (100% of its seeds collapse); no clip: a reason; change clip.kind = minirl" in refused
    )
    assert not (tmp_path / "out").exists()
    assert run([*words, str(tmp_path / "out"), "--force"]) == 0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["stable"] is False


def test_memory_follows_the_length_of_a_row(monkeypatch):
    titan = models.engines([("task.kind", "reasoning-gym")])[0].model_copy(update={"pack_length": 1024})
    half = dry.DryRun(memory=dict.fromkeys(dry.PARTS, 100), shardings=[], error=0.0, seconds=0.0, resident=0)
    monkeypatch.setattr(dry, "dry_run", lambda shape, settings, *rest: half if settings.pack_length == 512 else None)
    assert dry.per_position(None, titan, None, 1, 100 * len(dry.PARTS) + 512) == 1.0


def test_a_dry_run_that_cannot_be_is_one_line():
    titan = models.engines([("task.kind", "reasoning-gym"), ("torchtitan.dtype", "float32")])[0]
    with pytest.raises(ConfigError, match=r"covers only torchtitan\.dtype = bfloat16, got float32"):
        dry.dry_run(models.shape_of(), titan, build(Recipe, read(NAME)), 8)


def test_the_dry_run_expects_what_gates_and_rules_of_replay_take():
    found = dryruns("ruled")
    gates, rule = found["total-recall"], found["minirl-r3-condition"]
    assert all(abs(estimate / allocated - 1.0) < 1e-4 for estimate, allocated in found.values())
    assert gates[1] - rule[1] == gates[0] - rule[0] > 128 * 4 * 2 * 4 - 100  # a float32 of each expert of each row


def test_the_dry_run_expects_what_updates_allocated_on_a_gpu():
    found = dryruns("recorded")
    assert len(found) == 4
    for layout, (estimate, allocated) in found.items():
        assert abs(estimate / allocated - 1.0) < 0.01, (layout, estimate, allocated)


def test_the_dry_run_is_shown_no_gpu(monkeypatch):
    seen = []

    def ran(command, **given):
        seen.append(given["env"]["CUDA_VISIBLE_DEVICES"])
        return subprocess.CompletedProcess(command, 2, "", "a reason")

    monkeypatch.setattr(dry.subprocess, "run", ran)
    with pytest.raises(ConfigError, match="a reason"):
        dry.dry_run(models.shape_of(), models.engines([("task.kind", "sums")])[0], build(Recipe, read(NAME)), 8)
    assert seen == [""]


def test_vllm_leaves_the_routers_out():
    from vllm.model_executor.layers.quantization.compressed_tensors.utils import should_ignore_layer

    for layer in (f"model.layers.{i}.mlp.gate" for i in (0, 47)):
        assert should_ignore_layer(layer, ROUTERS, use_fnmatch=True)
    for layer in ("model.layers.0.mlp.experts", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.gate_up_proj"):
        assert not should_ignore_layer(layer, ROUTERS, use_fnmatch=True)
