"""Bundles without engines: what is counted, divided, written and refused before a dry run."""

import json
import os
import stat
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from firstorder.backends.promote import bundle, hardware, memory, models, plan, readme, rehearse
from firstorder.backends.promote.dry import Dry, layers_folded
from firstorder.backends.vllm import arguments as vllm_arguments
from firstorder.backends.vllm.serve import flags
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.recipe import Recipe
from firstorder.core.toml import build, read, shipped, source

GRID = [f"qwen3-30b-a3b-{mode}-n{n}" for mode in ("none", "r2", "r3") for n in (1, 2, 4, 8)]
GIB = 1 << 30
LENGTH = 32_768  # tokens of the longest response with its prompt, as in the paper


@pytest.fixture(scope="module")
def shape():
    return models.shape_of()


def recipe_of(name):
    return build(Recipe, read(name))


def planned(shape, name="qwen3-30b-a3b-r3-n2", world=64, gpu="h100", sets=()):
    return plan.plan(shape, recipe_of(name), *models.engines(sets)[:2], world, hardware.gpu(gpu))


def test_the_grid_of_the_paper_ships():
    assert [name for name in shipped() if name.startswith("qwen3-30b-a3b")] == sorted(GRID)


@pytest.mark.parametrize("name", GRID)
def test_a_large_recipe_is_the_small_one_on_another_model(name):
    large, small = recipe_of(name), recipe_of(name.replace("qwen3-30b-a3b", "minirl"))
    method = {"about", "optimizer", "schedule"}
    assert large.model_dump(exclude=method) == small.model_dump(exclude=method)
    n = large.schedule.minibatches
    assert large.schedule.prompts * large.schedule.group_size == 1024 * n
    assert str(n) == name[-1]


def test_parameters_are_those_of_the_model(shape):
    # 48 layers of 4 projections (5120 + 4096 rows), 128 experts of three 768 x 2048 matrices, a router and four norms
    layer = (5120 + 4096) * 2048 + 128 * 3 * 768 * 2048 + 128 * 2048 + 2 * 2048 + 2 * 128
    assert memory.parameters(shape) == 2 * 151936 * 2048 + 48 * layer + 2048 == 30_532_122_624
    assert memory.active(shape) == pytest.approx(3.04e9, rel=0.01)  # 3.3 B with the embedding, as its name says


def test_bytes_of_a_token(shape):
    assert memory.kv_bytes(shape, "auto") == 2 * 48 * 4 * 128 * 2
    assert memory.kv_bytes(shape, "fp8") == 2 * 48 * 4 * 128
    assert memory.route_bytes(shape, 1) == 384
    assert memory.wire_bytes(shape) == 512  # base64
    assert memory.host_bytes(shape) == 3 * 768 + 48 * 8


def test_quantised_weights_keep_what_decides_the_route(shape):
    whole = memory.serving_weights(shape, "none")
    assert whole == 2 * memory.parameters(shape)
    low = 48 * (memory.attention(shape) + memory.experts(shape))
    assert memory.serving_weights(shape, "fp8_per_tensor") == whole - low
    assert memory.serving_weights(shape, "fp8_per_block") == whole - low + 4 * low // 128**2


def test_a_server_quantises_all_but_the_routers(monkeypatch):
    monkeypatch.setattr(vllm_arguments, "ON_CPU", False)
    _, vllm, _ = models.engines()
    words = flags("model", "host", 1, vllm.model_copy(update={"tensor": 2}))
    given = dict(zip(words[::2], words[1::2], strict=False))
    assert given["--quantization"] == "fp8_per_block"
    assert json.loads(given["--quantization-config"]) == {"ignore": ["*mlp.gate"]}
    assert given["--tensor-parallel-size"] == "2"
    assert "--no-enforce-eager" in words
    plain = flags("model", "host", 1, vllm.model_copy(update={"quantization": "none"}))
    assert not any("quantization" in word for word in plain)


def test_a_plan_fills_nodes_and_gpus(shape):
    where = planned(shape)
    assert (where.nodes, where.ranks_per_node, where.rollout_nodes, where.engines) == (8, 8, 8, 64)
    weights = memory.serving_weights(shape, "fp8_per_block")
    assert weights + where.kv_cache + plan.SERVING == where.gpu.usable
    assert where.sequences == where.kv_cache // (memory.kv_bytes(shape, "auto") * LENGTH)
    assert planned(shape, sets=["vllm.tensor=2"]).engines == 32


def test_a_step_is_made_of_its_parts(shape):
    titan, vllm, _ = models.engines()
    moved = {n: plan.step(shape, recipe_of(n), titan, vllm, planned(shape)) for n in GRID}
    one, eight = moved["qwen3-30b-a3b-r3-n1"], moved["qwen3-30b-a3b-r3-n8"]
    assert eight.tokens == 8 * one.tokens == 8 * 1024 * LENGTH
    assert eight.routes == eight.tokens * 512
    assert one.weights == 4 * 30_532_122_624
    assert eight.update == pytest.approx(8 * one.update)
    assert one.score == 2 * moved["qwen3-30b-a3b-r2-n1"].score  # live, then with the rollout's routes
    assert one.seconds == one.rollout + one.score + one.update + one.exchange + one.sync
    flops = 1024 * LENGTH * plan.forward_flops(shape, LENGTH)
    assert one.update == pytest.approx(4 * flops / (64 * 989e12 * plan.TRAINING))


def test_without_other_ranks_nothing_is_exchanged(shape):
    titan, _, _ = models.engines(["torchtitan.expert=1"])
    where = planned(shape, world=1, sets=["torchtitan.expert=1"])
    assert plan.exchanges(shape, titan, where, 1 << 20, passes=1, recomputed=0) == (0, 0)


WRONG = {
    "half a node": ({"world": 60}, "--world 60 does not fill nodes of 8 GPUs; give a multiple of 8"),
    "experts on more ranks": ({"world": 4}, "torchtitan.expert = 8 must divide the number of ranks, got 4"),
    "experts that do not divide": ({"sets": ["torchtitan.expert=3"], "world": 24}, "must divide num_experts = 128"),
    "shards": ({"sets": ["torchtitan.shard=8"]}, "must be the number of ranks, got 64 ranks; set shard = -1"),
    "tensor": ({"sets": ["vllm.tensor=3"]}, "vllm.tensor = 3 does not divide 8"),
    "positions": ({"sets": ["torchtitan.pack_length=50000"]}, "more than the 40960 positions of the model"),
    "rows": ({"sets": ["vllm.max_tokens=32768"]}, f"do not fit into torchtitan.pack_length = {LENGTH}"),
    "tensor parallel": ({"sets": ["torchtitan.tensor=2"]}, "exchange is not priced yet; set torchtitan.tensor = 1"),
    "a task": ({"sets": ["task.kind=maths"]}, "task.kind"),
    "no fp8": ({"gpu": "a100-80gb"}, "vllm.quantization = fp8_per_block needs a GPU that multiplies in FP8"),
    "the recipe": ({"sets": ["clip.high=0.3"]}, "would change the recipe, which is promoted byte for byte"),
    "an unknown key": ({"sets": ["vllm.tensr=2"]}, "did you mean 'tensor'?"),
    "a critic": ({"name": "ppo-critic"}, "wants a critic"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_divide_or_fit_is_named_with_its_remedy(name, shape):
    given, remedy = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        planned(shape, **given)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_response_must_fit_into_the_kv_cache(shape):
    titan, vllm, _ = models.engines()
    used = memory.serving_weights(shape, vllm.quantization) + plan.SERVING
    small = replace(
        hardware.gpu("h100"), memory=int((used + 10_000 * memory.kv_bytes(shape, "auto")) / hardware.USABLE)
    )
    with pytest.raises(ConfigError, match=r"needs 3\.0; lower them to (9999|10000) together, or raise vllm.tensor"):
        plan.plan(shape, recipe_of("minirl"), titan, vllm, 64, small)


def test_an_update_too_long_for_memory_says_what_fits():
    titan, _, _ = models.engines()
    card = hardware.gpu("h100")
    plan.check_memory(card.usable, 1.0, titan, card)
    per = card.usable / 10_000  # everything is proportional to the positions, and 10,000 of them fit
    with pytest.raises(ConfigError, match="the largest that fits is 9984: lower it"):
        plan.check_memory(int(LENGTH * per), per, titan, card)
    with pytest.raises(ConfigError, match="whatever the context; raise --world"):
        plan.check_memory(2 * card.usable, 1.0, titan, card)


def test_layers_that_are_alike_are_shown_once():
    one = {"whole": [4], "local": [2], "mesh": ["fsdp"], "placements": ["S(0)"]}
    many = [one | {"name": f"layers.{i}.w"} for i in range(3)] + [one | {"name": "layers.3.w", "local": [4]}]
    assert [(each["name"], each["layers"]) for each in layers_folded(many)] == [("layers.*.w", 3), ("layers.3.w", 1)]


@pytest.fixture
def folder(tmp_path, shape):
    where = planned(shape)
    for name, text in bundle.launchers("Qwen3 30B/r3", where, models.engines()[1]).items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_launchers_are_filled_and_parse(folder):
    for file in folder.iterdir():
        assert "@" not in file.read_text().replace('"${@:1}"', "").replace('"$@"', "").replace("[@]", "")
        if file.suffix != ".yaml":
            subprocess.run(["bash", "-n", file], check=True)
    jobs = {each["metadata"]["name"]: each for each in yaml.safe_load_all((folder / "job.yaml").read_text())}
    assert list(jobs) == ["qwen3-30b-r3", "qwen3-30b-r3-rollout", "qwen3-30b-r3-train"]
    train = jobs["qwen3-30b-r3-train"]["spec"]
    assert train["completions"] == 8
    (container,) = train["template"]["spec"]["containers"]
    hosts = {each["name"]: each["value"] for each in container["env"]}["ROLLOUT_HOSTS"].split(",")
    assert len(hosts) == 8
    assert hosts[7] == "qwen3-30b-r3-rollout-7.qwen3-30b-r3"
    assert "#SBATCH --nodes=16" in (folder / "job.sbatch").read_text()


SRUN = """#!/bin/bash
hosts=$(while [ "$1" != bash ]; do [ "$1" != --nodelist ] || echo "$2"; shift; done)
while [ "$1" != bash ]; do shift; done
number=0
for host in ${hosts//,/ }; do SLURM_PROCID=$number HOST=$host "$@"; number=$((number + 1)); done
"""


def test_a_slurm_job_gives_every_node_its_part(folder):
    tools = folder / "tools"
    tools.mkdir()
    stubs = {
        "tools/srun": SRUN,
        "tools/scontrol": '#!/bin/bash\nprintf "n%s\\n" 0 1 2 3\n',
        "tools/hostname": "#!/bin/bash\necho 10.0.0.1 172.17.0.1\n",
        "serve.sh": '#!/bin/bash\necho "serve $HOST $SERVER_HOST"\n',
        "train.sh": '#!/bin/bash\nsleep 0.5; echo "train $HOST $NODE_RANK $HEAD $ROLLOUT_HOSTS $1"\n',
    }
    for name, text in stubs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_NODELIST": "n[0-3]",
        "NODES": "2",
    }
    done = subprocess.run(
        ["bash", folder / "job.sbatch", "--more"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "serve n2 10.0.0.1",
        "serve n3 10.0.0.1",
        "train n0 0 n0 n2,n3 --more",
        "train n1 1 n0 n2,n3 --more",
    ]


def test_the_trainers_launcher_calls_what_it_says(folder):
    tools = folder / "tools"
    tools.mkdir()
    (tools / "torchrun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tools / "torchrun").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "ROLLOUT_HOSTS": "a,b",
        "ENGINES_PER_NODE": "2",
        "MODEL": "/models/m",
        "RUN": str(folder / "run"),
        "SHARED": str(folder / "shared"),
    }

    def words():
        done = subprocess.run(
            ["bash", folder / "train.sh", "--strict"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first = words()
    addresses = ", ".join(f'"http://{host}:{port}"' for host in "ab" for port in (8001, 8002))
    assert f"vllm.servers=[{addresses}]" in first
    assert "torchtitan.model=/models/m" in first
    assert first[-1] == "--strict"
    assert "--resume" not in first
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text("")
    assert "--resume" in words()  # a job that was started again


def test_settings_can_be_read_back(shape):
    given, where = models.engines(), planned(shape)
    text = bundle.settings(*given, where)
    again = models.engines([])  # the same models, so that a key that is not one would be refused
    assert 'quantization = "fp8_per_block"' in text
    assert f"max_sequences = {where.sequences}" in text
    assert 'kind = "reasoning-gym"' in text
    assert "servers" not in text
    assert again == given


def test_the_lock_pins_what_is_installed_under_the_names_of_a_cluster(monkeypatch):
    cuda, test = "; extra == 'engines-cuda'", '; extra == "test"'
    here = {
        "firstorder": (
            "0.1.0",
            ["pydantic<3,>=2.7", f"torch==2.13.0{cuda}", f"vllm==0.30.0{cuda}", f"pytest>=8{test}"],
        ),
        "torch": ("2.13.0+cpu", ["typing_extensions>=4", "optree; extra == 'optree'"]),
        "pydantic": ("2.12", []),
        "typing-extensions": ("4.15", None),
        "pytest": ("8.4", []),
        "optree": ("1", []),
    }
    made = {name: SimpleNamespace(version=version, requires=needs) for name, (version, needs) in here.items()}
    monkeypatch.setattr(bundle, "_installed", made.get)
    lines = bundle.lock().splitlines()
    pins = ["firstorder==0.1.0", "pydantic==2.12", "torch==2.13.0", "typing-extensions==4.15", "vllm==0.30.0"]
    assert lines == pins  # vLLM is not installed here: the pin of the extra


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
    "no evidence": (["minirl", "--evidence", "/nowhere"], "--evidence /nowhere is no gate.json"),
    "the method": (["minirl", "--set", "clip.low=0.1"], "would change the recipe"),
    "a recipe that cannot be run": (["pr2"], "recipe pr2 cannot be run"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_one_line_and_writes_nothing(name, capsys, tmp_path):
    arguments, remedy = REFUSED[name]
    world = [] if "--world" in arguments else ["--world", "64"]
    assert run(["promote", *arguments, *world, "--out", str(tmp_path / "bundle")]) == 2
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
    words = ["--world", "64", "--out", str(tmp_path / "bundle"), "--match", str(other)]
    capsys.readouterr()
    assert run(["promote", "qwen3-30b-a3b-r2-n2", *words]) == 2
    assert "is evidence of another recipe (hash" in capsys.readouterr().err


def test_a_run_of_the_same_method_gives_its_kl_and_flips(other):
    from firstorder.cli.promote import wanted

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


def test_a_run_folder_is_promoted_byte_for_byte(other):
    from firstorder.cli.promote import read_source

    content, recipe = read_source(str(other))
    assert content == (other / "config.toml").read_bytes()
    assert recipe.about.name == "minirl-r3-n2"
    assert read_source("minirl-r3-n2")[0].decode() == source("minirl-r3-n2")


def test_an_executable_is_one(tmp_path, shape, monkeypatch):
    from firstorder.cli import promote

    monkeypatch.setattr(promote, "figures", lambda runs: {})
    recipe, where = recipe_of("qwen3-30b-a3b-r2-n1"), planned(shape, "qwen3-30b-a3b-r2-n1")
    titan, vllm, _ = models.engines()
    moved = plan.step(shape, recipe, titan, vllm, where)
    sharding = {"name": "w", "whole": [2], "local": [1], "mesh": ["fsdp"], "placements": ["S(0)"]}
    dry = Dry(
        memory=dict.fromkeys(("parameters", "buffers", "gradients", "optimizer", "activations", "logits"), GIB),
        shardings=[sharding],
        error=-0.001,
        seconds=1.0,
        resident=GIB,
    )
    estimate = {"value": 0.0, "low": 0.0, "high": 0.0}
    gate = {
        "recipe": "0" * 64,
        "stable": False,
        "rule": "a rule",
        "safest": "clip.kind = minirl",
        "target": {"kl": 1.5e-3, "flip_rate": 0.1, "source": "a paper"},
        "calibration": {"kl": 2e-3, "flip_rate": 0.05},
        "trials": {
            "the recipe": {
                "collapsed": estimate,
                "final_j_pi": estimate,
                "worst": {"gradient_error": 0.1, "gradient_error_natural": 0.2, "replay_bias": 0.0},
            }
        },
    }
    notes = promote.remarks(recipe, where, moved)
    assert any("clip.kind = minirl: theta equals theta_old" in note for note in notes)
    assert any("router_replay.mode = R2" in note for note in notes)
    content = source(recipe.about.name).encode()
    files = promote.contents(recipe, content, where, moved, dry, gate, notes, sections=models.engines())
    promote.write(tmp_path / "out", files, tmp_path, recipe, None, gate)
    out = tmp_path / "out"
    assert (out / "recipe.toml").read_bytes() == content
    assert all(os.stat(out / name).st_mode & stat.S_IXUSR for name in ("train.sh", "serve.sh"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["stable"] is False
    assert manifest["sha256"] == {k: v for k, v in bundle.manifest(out).items() if k != "manifest.json"}
    text = (out / "README.md").read_text()
    assert "UNSTABLE, and promoted with --force" in text
    for file in readme.FILES:
        for part in file.split(", "):
            assert (out / part).exists()


def test_a_file_of_settings_lies_between_the_recipe_and_assignments(tmp_path):
    from firstorder.cli.compose import compose_engines

    file = tmp_path / "engines.toml"
    where = planned(models.shape_of())
    file.write_text(bundle.settings(*models.engines(), where))
    recipe, titan, vllm, _ = compose_engines("minirl-r3-n2", ["torchtitan.model=m", "vllm.tensor=2"], str(file))
    assert recipe == recipe_of("minirl-r3-n2")
    assert (titan.expert, titan.model) == (8, "m")
    assert (vllm.quantization, vllm.tensor, vllm.kv_cache_mib) == ("fp8_per_block", 2, where.kv_cache >> 20)
    with pytest.raises(ConfigError, match="no recipe or file"):
        compose_engines("minirl-r3-n2", [], str(tmp_path / "nowhere.toml"))
