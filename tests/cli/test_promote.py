"""`firstorder promote` without engines: what it takes and refuses, and what a bundle holds besides launchers."""

import base64
import hashlib
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from promotions import GATE, GRID, promotion_of, recipe_of

from firstorder.backends.promote import bundle, environment, models, readme, rehearse
from firstorder.cli.api.recipes import resolve
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import fingerprint
from firstorder.core.settings.toml import dump, source


def test_the_lock_pins_what_is_installed_under_the_names_of_a_cluster(monkeypatch):
    cuda, test = "; extra == 'engines-cuda'", '; extra == "test"'
    here = {
        "firstorder": (
            "0.1.0",
            ["pydantic<3,>=2.7", f"torch==2.13.0{cuda}", f"vllm==0.30.0{cuda}", f"pytest>=8{test}", f"Web[all]{cuda}"],
        ),
        "torch": ("2.13.0+cpu", ["typing_extensions>=4", "mkl", "optree; extra == 'optree'"]),
        "pydantic": (
            "2.12",
            ["typing_extensions>=4", "pywin32; sys_platform == 'win32'", "old==1; python_version < '3'"],
        ),
        "web": (
            "2.0",
            ["colorama>=0.4; platform_system == 'Windows'", "speed; extra == 'all'", "slow; extra == 'other'"],
        ),
        "typing-extensions": ("4.15", None),
        **{name: ("1", []) for name in ("pytest", "optree", "mkl", "speed", "slow", "pywin32", "colorama", "old")},
    }
    made = {name: SimpleNamespace(version=version, requires=needs) for name, (version, needs) in here.items()}
    monkeypatch.setattr(environment, "installed", made.get)
    head, _, *lines = environment.lock().splitlines()
    pins = ["pydantic==2.12", "speed==1", "torch==2.13.0", "typing-extensions==4.15", "vllm==0.30.0", "web==2.0"]
    assert lines == pins  # vLLM is not installed here: the pin of the extra. mkl is the CPU build's
    assert head.startswith("# ")
    assert "firstorder-0.1.0-py3-none-any.whl" in head


def test_pip_takes_the_lock(tmp_path):
    lines = [line for line in environment.lock().splitlines() if not line.startswith("#")]
    read = [Requirement(line) for line in lines]
    assert all(len(one.specifier) == 1 and str(one.specifier).startswith("==") for one in read)
    assert {"torch", "vllm", "torchtitan"} <= {one.name for one in read}
    here = [line for line, one in zip(lines, read, strict=True) if environment.installed(one.name)]
    assert len(here) > 10
    file = tmp_path / "environment.lock"
    # of what is not here nothing may be asked, as tests do not reach an index
    file.write_text("\n".join(line for line in here if not line.startswith(("vllm==", "torch=="))))
    words = ["-m", "pip", "install", "--dry-run", "--no-deps", "--no-index", "-r", file]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_is_this_package(tmp_path):
    content = environment.wheel()
    assert content == environment.wheel()
    file = tmp_path / environment.wheel_name()
    file.write_bytes(content)
    words = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "site", file]
    subprocess.run([sys.executable, *words], check=True)
    site, own = tmp_path / "site", Path(environment.__file__).parents[2]
    script = "import firstorder, firstorder.cli.main as m; print(firstorder.__file__); m.run(['recipes', 'gspo'])"
    environ = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.stdout.startswith(str(site / "firstorder/__init__.py"))
    assert 'kind = "gspo"' in done.stdout
    for folder in ("core", "sim", "backends", "cli"):
        there, here = (
            {p.relative_to(r) for p in r.rglob("*") if p.is_file() and p.suffix != ".pyc"}
            for r in (site / "firstorder" / folder, own / folder)
        )
        assert there == here
    with zipfile.ZipFile(file) as archive:
        about = f"firstorder-{environment.installed('firstorder').version}.dist-info"
        rows = archive.read(f"{about}/RECORD").decode().splitlines()
        assert {row.split(",")[0] for row in rows} == set(archive.namelist())
        name, hashed, size = next(row for row in rows if row.startswith("firstorder/core/training/loop.py")).split(",")
        data = archive.read(name)
        assert hashed == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        assert int(size) == len(data)


def test_a_manifest_holds_every_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert bundle.manifest(tmp_path) == {"a/b": empty}


def test_a_rehearsal_cuts_the_batch_and_leaves_the_method():
    for name in GRID:
        recipe = recipe_of(name)
        changed = [one.partition("=")[0] for one in rehearse.train_settings(recipe)]
        assert {key.split(".")[0] for key in changed} == {"schedule", "task", "torchtitan", "vllm"}
        assert "schedule.minibatches" not in changed
        assert f"schedule.prompts={recipe.schedule.minibatches}" in rehearse.train_settings(recipe)


REFUSED = {
    "an unknown GPU": (["minirl", "--gpu", "h10"], "no GPU 'h10'; did you mean 'h100'?"),
    "an unknown recipe": (["qwen3-30b-a3b-r4-n2"], "did you mean"),
    "a world that does not divide": (["minirl", "--world", "12"], "--world 12 does not fill nodes"),
    "no run": (["minirl", "--match", "/nowhere"], "--match /nowhere holds no metrics.jsonl"),
    "no evidence": (["minirl", "--evidence", "/nowhere"], "--evidence /nowhere is not a gate.json"),
    "the method": (["minirl", "--set", "clip.low=0.1"], "would change the recipe"),
    "no task": (["minirl"], "no task is set, so nothing says what to train on"),
    "a task here alone": (
        ["minirl", "--set", "task.kind=math", "--set", 'task.files=["problems.jsonl"]'],
        "task.files: problems.jsonl is relative, and nodes run elsewhere",
    ),
    "no time": (["minirl", "--time", "a day"], "--time must look like 24:00:00"),
    "too short a time": (["minirl", "--time", "1:00:00", "--set", "task.kind=sums"], "ends before a step does"),
    "an account": (
        ["minirl", "--account", "a b"],
        "--account must be a name that the cluster's scheduler knows, got 'a b'",
    ),
    "a time-out": (
        ["minirl", "--set", "task.kind=sums", "--set", "torchtitan.timeout=60"],
        "torchtitan.timeout = 60 s is below",
    ),
    "a recipe that cannot be run": (["pr2"], "recipe pr2 cannot be run"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_one_line_and_writes_nothing(name, capsys, tmp_path):
    arguments, remedy = REFUSED[name]
    world = [] if "--world" in arguments else ["--world", "64"]
    own = [] if "task" in name or "--set" in arguments else ["--set", "task.kind=sums"]
    assert run(["promote", *arguments, *own, *world, "--out", str(tmp_path / "bundle")]) == 2
    err = capsys.readouterr().err
    assert remedy in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run of minirl-r3-n2 in the simulator."""
    out = tmp_path_factory.mktemp("runs") / "r3"
    tiny = ["sim.vocab=3", "sim.horizon=2", "sim.prompts=2", "schedule.steps=2", "schedule.prompts=2"]
    words = [word for one in [*tiny, "schedule.group_size=2"] for word in ("--set", one)]
    assert run(["train", "minirl-r3-n2", *words, "--out", str(out)]) == 0
    return out


def test_a_run_of_another_recipe_is_no_evidence(other, capsys, tmp_path):
    words = ["--world", "64", "--set", "task.kind=sums", "--out", str(tmp_path / "bundle"), "--match", str(other)]
    capsys.readouterr()
    assert run(["promote", "qwen3-30b-a3b-r2-n2", *words]) == 2
    assert "is evidence of another recipe (hash" in capsys.readouterr().err


def test_a_run_of_the_same_method_gives_its_kl_and_flips(other):
    from firstorder.cli.api.evidence import wanted

    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    kl = sum(line["kl"] for line in lines) / 2
    if kl <= 0:  # k1 of a handful of tokens may have either sign
        with pytest.raises(ConfigError, match="both must be above 0"):
            wanted(recipe_of("qwen3-30b-a3b-r3-n2"), str(other))
        other.joinpath("metrics.jsonl").write_text("".join(json.dumps(line | {"kl": 2e-3}) + "\n" for line in lines))
        kl = 2e-3
    target = wanted(recipe_of("qwen3-30b-a3b-r3-n2"), str(other))
    assert target.kl == pytest.approx(kl)
    assert target.mode == "R3"  # its kl was taken under replay


def test_a_gate_that_lacks_what_is_said_of_it_is_no_evidence(tmp_path):
    from firstorder.cli.api.evidence import read_evidence

    recipe, file = recipe_of("minirl"), tmp_path / "gate.json"
    whole = GATE | {"recipe": fingerprint(recipe)}
    file.write_text(json.dumps(whole))
    assert read_evidence(recipe, str(file)) == whole
    for lost in ("tried", "cause", "extrapolation", "trials"):
        file.write_text(json.dumps({key: value for key, value in whole.items() if key != lost}))
        with pytest.raises(ConfigError, match=r"is not a gate\.json"):
            read_evidence(recipe, str(file))


def test_the_longest_response_has_all_its_turns():
    from firstorder.cli.api.promote import spoken

    _, vllm, task = models.engines([("task.kind", "guess"), ("task.turns", 3), ("vllm.max_tokens", 100)])
    assert spoken(vllm, task) == 300
    assert spoken(*models.engines([("task.kind", "sums")])[1:]) == 31744


def test_a_run_is_promoted_as_it_ran_and_a_recipe_resolved(other):
    from firstorder.cli.api.evidence import read_source

    content, recipe, task = read_source(str(other))
    assert task == {}  # the simulator's is another
    assert content == (other / "config.toml").read_bytes()
    assert recipe.about.name == "minirl-r3-n2"
    assert read_source("minirl-r3-n2")[0].decode() == dump(resolve("minirl-r3-n2"))


def test_an_executable_is_one(tmp_path, shape, monkeypatch, capsys):
    from firstorder.cli.api import promote

    monkeypatch.setattr(promote, "figures", lambda runs: {})
    sets = ["task.kind=math", 'task.files=["/data/problems.jsonl"]']
    promotion = promotion_of(shape, "qwen3-30b-a3b-r2-n1", sets)
    assert any("so a kill without notice loses as much" in note for note in promotion.notes)
    assert any("clip.kind = minirl: theta equals theta_old" in note for note in promotion.notes)
    assert any("router_replay.mode = R2" in note for note in promotion.notes)
    promote.write(tmp_path / "out", promotion, tmp_path, None)
    out = tmp_path / "out"
    assert (out / "recipe.toml").read_bytes() == promotion.source
    assert all(os.stat(out / name).st_mode & stat.S_IXUSR for name in bundle.SCRIPTS)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["stable"] is False
    assert manifest["sha256"] == {k: v for k, v in bundle.manifest(out).items() if k != "manifest.json"}
    text = (out / "README.md").read_text()
    assert "UNSTABLE, and promoted with --force" in text
    assert (
        "UNSTABLE. Cause: no clip: a reason. Remedy: clip.kind = minirl. Tried on responses of 512 tokens, of" in text
    )
    assert "600 exact expected updates. Extrapolation: none: no border is known." in text
    for file in readme.FILES:
        for part in file.format(wheel=environment.wheel_name()).split(", "):
            assert (out / part).exists()
    assert f"{promotion.timing.gpu_hours:,.0f} GPU-hours** of 128 GPUs" in text
    assert "no GPU has confirmed it" in text
    assert "task.kind = `math`. Judged by: math-verify" in text
    assert "- `/data/problems.jsonl`" in text
    promote.PromoteResult(document={}, folder=out, promotion=promotion).print()
    shown = capsys.readouterr().out
    assert "task: math /data/problems.jsonl" in shown
    assert "gate: UNSTABLE, 0% of 8 seeds collapse on responses of 512 tokens, 600 updates, exact expected" in shown
    assert "engines: KL 0.002 nats a token and 5.0% of routes flipped, for 0.0015 and 10.0%" in shown
    for line in ("extrapolation: none: no border is known", "cause: no clip: a reason", "remedy: clip.kind = minirl"):
        assert line in shown
    assert (
        f"at most {promotion.timing.total / 3600:,.0f} h and {promotion.timing.gpu_hours:,.0f} GPU-hours: 500 steps"
        in shown
    )


def test_every_kind_of_task_says_what_judges_it():
    from typing import get_args

    from firstorder.backends.tasks.config import Kind

    assert set(readme.JUDGES) == set(get_args(Kind))
    (said,) = readme.trained(models.engines([("task.kind", "reasoning-gym"), ("task.dataset", "gcd")])[2])
    assert "data set `gcd`" in said


def test_a_source_may_bring_its_task(tmp_path):
    from firstorder.cli.api.evidence import read_source

    file = tmp_path / "own.toml"
    file.write_text(source("minirl-r3-n2") + '\n[task]\nkind = "sums"\n')
    assert models.engines([], read_source(str(file))[2])[2].kind == "sums"


def test_a_file_of_settings_lies_between_the_recipe_and_assignments(tmp_path):
    from firstorder.cli.api.compose import compose_engines

    file = tmp_path / "engines.toml"
    promotion = promotion_of(models.shape_of())
    file.write_text(bundle.settings(promotion))
    made = compose_engines("minirl-r3-n2", ["torchtitan.model=m", "vllm.tensor=2"], str(file))
    vllm, kv_cache = made.vllm, promotion.plan.kv_cache
    assert made.recipe == recipe_of("minirl-r3-n2")
    assert (made.torchtitan.expert, made.torchtitan.model) == (8, "m")
    assert (vllm.quantization, vllm.tensor, vllm.kv_cache_mib) == ("fp8_per_block", 2, kv_cache >> 20)
    with pytest.raises(ConfigError, match="no recipe or file"):
        compose_engines("minirl-r3-n2", [], str(tmp_path / "nowhere.toml"))
