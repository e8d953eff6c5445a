"""Bundles without engines: what is counted, divided, written and refused before a dry run."""

import base64
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement

from firstorder.backends.promote import bundle, environment, hardware, memory, models, plan, readme, rehearse, timing
from firstorder.backends.promote.dry import Dry, layers_folded
from firstorder.backends.vllm import arguments as vllm_arguments
from firstorder.backends.vllm.serve import flags
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read, shipped, source

GRID = [f"qwen3-30b-a3b-{mode}-n{n}" for mode in ("none", "r2", "r3") for n in (1, 2, 4, 8)]
GIB = 1 << 30
LENGTH = 32_768  # tokens of the longest response with its prompt, as in the paper


@pytest.fixture(scope="module")
def shape():
    return models.shape_of()


def recipe_of(name):
    return build(Recipe, read(name))


def engines(sets=()):
    return models.engines(["task.kind=sums", *sets])


def planned(shape, name="qwen3-30b-a3b-r3-n2", world=64, gpu="h100", sets=()):
    return plan.plan(shape, recipe_of(name), *engines(sets)[:2], world, hardware.gpu(gpu))


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
    _, vllm, _ = engines()
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
    titan, vllm, _ = engines()
    moved = {n: plan.step(shape, recipe_of(n), titan, vllm, planned(shape)) for n in GRID}
    one, eight = moved["qwen3-30b-a3b-r3-n1"], moved["qwen3-30b-a3b-r3-n8"]
    assert eight.tokens == 8 * one.tokens == 8 * 1024 * LENGTH
    assert eight.routes == eight.tokens * 512
    assert one.weights == 4 * 30_532_122_624
    assert eight.update == pytest.approx(8 * one.update)
    assert one.score == 2 * moved["qwen3-30b-a3b-r2-n1"].score  # live, then with the rollout's routes
    assert one.seconds == one.rollout + one.score + one.update + one.exchange + one.sync + one.probe + one.save
    assert one.rollout == one.response * -(-1024 // (64 * 12))
    assert (
        0.3 * one.response < one.probe < one.response
    )  # a response that has the engine for itself still reads all weights
    assert one.checkpoint == 3 * one.weights
    assert one.save == one.checkpoint / (8 * plan.SHARED)
    flops = 1024 * LENGTH * plan.forward_flops(shape, LENGTH)
    assert one.update == pytest.approx(4 * flops / (64 * 989e12 * plan.TRAINING))


def test_without_other_ranks_nothing_is_exchanged(shape):
    titan, _, _ = engines(["torchtitan.expert=1"])
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
    titan, vllm, _ = engines()
    used = memory.serving_weights(shape, vllm.quantization) + plan.SERVING
    small = replace(
        hardware.gpu("h100"), memory=int((used + 10_000 * memory.kv_bytes(shape, "auto")) / hardware.USABLE)
    )
    with pytest.raises(ConfigError, match=r"needs 3\.0; lower them to (9999|10000) together, or raise vllm.tensor"):
        plan.plan(shape, recipe_of("minirl"), titan, vllm, 64, small)


def test_an_update_too_long_for_memory_says_what_fits():
    titan, _, _ = engines()
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


def run_of(shape, name="qwen3-30b-a3b-r3-n2", sets=(), time=None, world=64):
    titan, vllm, _ = engines(sets)
    recipe, where = recipe_of(name), planned(shape, name, world=world, sets=sets)
    moved = plan.step(shape, recipe, titan, vllm, where)
    titan, vllm = timing.patient(titan, vllm, moved, sets)
    return titan, vllm, where, moved, timing.timing(recipe, titan, where, moved, time)


def test_time_outs_and_checkpoints_follow_from_the_estimates(shape):
    for name in GRID:
        titan, vllm, where, moved, run = run_of(shape, name)
        assert titan.timeout >= timing.SLACK * moved.rollout + vllm.timeout
        assert vllm.timeout >= timing.SLACK * moved.response
        assert titan.checkpoint_every == timing.cadence(moved.seconds)
        assert run.lost <= timing.LOST or titan.checkpoint_every == 1
        assert run.notice >= timing.NOTICE * moved.seconds
        assert where.nodes == where.rollout_nodes == 8
        assert run.total == 500 * moved.seconds + run.evaluating + timing.START
        assert run.gpu_hours == pytest.approx(128 * run.total / 3600)
    short = ["vllm.max_tokens=1024", "torchtitan.pack_length=2048"]
    titan, _, _, moved, run = run_of(shape, sets=short)
    assert titan.checkpoint_every > 1
    assert run.lost <= timing.LOST < run.lost + moved.seconds


def test_evaluations_are_paid_for(shape):
    *_, moved, run = run_of(shape)
    assert run.evaluating == 50 * moved.response  # every tenth of 500 steps, 256 prompts in one wave of 64 engines x 12
    *_, none = run_of(shape, sets=["torchtitan.evaluate_every=0"])
    assert none.evaluating == 0


def test_an_assigned_time_out_is_kept_or_refused(shape):
    sets = ["torchtitan.timeout=5000", "vllm.timeout=1000", "torchtitan.checkpoint_every=3"]
    titan, vllm, *_ = run_of(shape, sets=sets)
    assert (titan.timeout, vllm.timeout, titan.checkpoint_every) == (5000, 1000, 3)
    with pytest.raises(ConfigError, match=r"torchtitan\.timeout = 1800 s is below the 2871 s that a rollout may take"):
        run_of(shape, sets=["torchtitan.timeout=1800"])
    with pytest.raises(ConfigError, match=r"vllm\.timeout = 60 s is below the 957 s that a response may take"):
        run_of(shape, sets=["vllm.timeout=60"])


def test_a_job_is_long_enough_for_a_step(shape):
    *_, moved, run = run_of(shape, time=86_400)
    useful = 86_400 - timing.START - run.notice
    assert run.jobs == -(-(500 * moved.seconds + run.evaluating) // useful)
    assert run.restarts == run.jobs - 1 + timing.SPARE
    with pytest.raises(ConfigError, match=r"--time 3600 s ends before a step does.*give at least"):
        run_of(shape, time=3600)


@pytest.mark.parametrize("text", ["", "0", "1:2:3:4", "a day", "1-", "-1", "24h", "00:00:00"])
def test_a_time_that_is_none_is_named(text):
    with pytest.raises(ConfigError, match="--time must be"):
        timing.seconds(text)


def test_times_are_those_of_slurm():
    assert [timing.seconds(t) for t in ("90", "90:30", "1:00:00", "1-0", "1-12:30", "1-12:30:15")] == [
        *(5400, 5430, 3600, 86400, 131400, 131415)
    ]
    assert all(timing.seconds(timing.clock(s)) == s for s in (60, 3599, 86399, 86400, 1_000_000))


@pytest.fixture
def folder(tmp_path, shape):
    _, vllm, where, moved, run = run_of(shape, time=86_400)
    job = bundle.Job(account="lab", partition="gpu,long")
    for name, text in bundle.launchers("Qwen3 30B/r3", where, moved, run, vllm, job).items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "engines.toml").write_text("")
    return tmp_path


def test_launchers_are_filled_and_parse(folder):
    scripts = [file for file in sorted(folder.iterdir()) if file.suffix not in (".yaml", ".toml")]
    assert {file.name for file in scripts} == set(bundle.LAUNCHERS) - {"job.yaml"}
    for file in scripts:
        assert not re.search("@[A-Z_]+@", file.read_text())
        subprocess.run(["bash", "-n", file], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck, "-x", *(file.name for file in scripts)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    directives = re.findall("^#SBATCH --([a-z-]+)(?:=(.*))?$", (folder / "job.sbatch").read_text(), flags=re.MULTILINE)
    given = dict(directives)
    assert given["signal"] == f"B:TERM@{next(timed(folder, 'NOTICE'))}"
    assert (given["account"], given["partition"], given["time"]) == ("lab", "gpu,long", "1-00:00:00")
    assert (given["nodes"], given["cpus-per-task"], given["open-mode"]) == ("16", "96", "append")
    assert "requeue" in given


def timed(folder, name):
    yield from re.findall(rf"{name}:=(\d+)", (folder / "settings.env").read_text())


def test_kubernetes_gets_shared_memory_limits_and_grace(folder):
    jobs = {each["metadata"]["name"]: each for each in yaml.safe_load_all((folder / "job.yaml").read_text())}
    assert list(jobs) == ["qwen3-30b-r3", "qwen3-30b-r3-rollout", "qwen3-30b-r3-train"]
    for role, limit, count in (("rollout", 5, 8), ("train", int(next(timed(folder, "MAX_RESTARTS"))), 8)):
        spec = jobs[f"qwen3-30b-r3-{role}"]["spec"]
        assert (spec["completions"], spec["backoffLimit"]) == (count, limit)
        pod = spec["template"]["spec"]
        assert {"name": "memory", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
        (container,) = pod["containers"]
        assert {"name": "memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert container["image"] == "IMAGE"  # capitals: no valid name of an image, nor of a claim
        assert f"/bundle/preflight.sh {'serve' if role == 'rollout' else 'train'} &&" in container["command"][-1]
        subprocess.run(["bash", "-n", "-c", container["command"][-1]], check=True)
    assert pod["terminationGracePeriodSeconds"] == int(next(timed(folder, "NOTICE")))
    hosts = {each["name"]: each["value"] for each in container["env"]}["ROLLOUT_HOSTS"].split(",")
    assert hosts == [f"qwen3-30b-r3-rollout-{i}.qwen3-30b-r3" for i in range(8)]


SRUN = """#!/bin/bash
echo "${SRUN_CPUS_PER_TASK} $*" >> "$TOOLS/srun.log"
while [[ "$1" != */task.sh ]]; do
    case $1 in --nodelist) hosts=$2 ;; --output) log=$2 ;; esac
    shift
done
number=0 code=0 pids=()
trap 'kill $(jobs -p) 2>/dev/null' TERM
for host in ${hosts//,/ }; do
    out=${log//%N/$host}
    SLURM_PROCID=$number HOST=$host "$@" >> "${out//%j/$SLURM_JOB_ID}" 2>&1 &
    pids+=($!)
    number=$((number + 1))
done
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""


@pytest.fixture
def slurm(folder):
    """Runs job.sbatch on four nodes of a scheduler that stands in for SLURM; what it wrote, by log."""
    tools = folder / "tools"
    tools.mkdir()
    scripts = {
        "tools/srun": SRUN,
        "tools/scontrol": '#!/bin/bash\n[ $1 = requeue ] && echo $2 > "$TOOLS/requeue" || printf "n%s\\n" 0 1 2 3\n',
        "tools/getent": '#!/bin/bash\necho "10.0.0.${2#n} STREAM $2"\n',
        "preflight.sh": '#!/bin/bash\necho "firstorder: $HOST: fit as $1"\n',
        "serve.sh": '#!/bin/bash\necho "serve $HOST $SERVER_HOST"; exec sleep 60\n',
        "train.sh": '#!/bin/bash\necho "train $HOST $NODE_RANK $HEAD $ROLLOUT_HOSTS $1"\n',
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    def submit(changes=None, **variables):
        for name, text in (changes or {}).items():
            (folder / name).write_text(text)
        environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "TOOLS": str(tools),
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_NODELIST": "n[0-3]",
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "96",
            "NODES": "2",
            "POLL": "0.05",
            **variables,
        }
        words = ["bash", folder / "job.sbatch", "--more"]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return submit


def ended(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out + err


STEP = '#!/bin/bash\nmkdir -p "$BUNDLE/run/checkpoints"; touch "$BUNDLE/run/checkpoints/step-0000001.pt"\n'
FAULT = 'echo "firstorder: $HOST: no space left" >&2; exit 2\n'


def test_a_slurm_job_gives_every_node_its_part_and_a_log(folder, slurm):
    assert ended(slurm()) == (0, "")
    said = {file.name: file.read_text() for file in (folder / "logs").iterdir()}
    assert said["7-serve-n2.log"] == "serve n2 10.0.0.2\n"
    assert said["7-serve-n3.log"] == "serve n3 10.0.0.3\n"
    assert said["7-train-n0.log"] == "train n0 0 n0 10.0.0.2,10.0.0.3 --more\n"
    assert said["7-train-n1.log"] == "train n1 1 n0 10.0.0.2,10.0.0.3 --more\n"
    assert said["7-preflight-n1.log"] == "firstorder: n1: fit as train\n"
    assert said["7-preflight-n3.log"] == "firstorder: n3: fit as serve\n"
    calls = (folder / "tools/srun.log").read_text().splitlines()
    assert len(calls) == 4
    assert all(call.startswith("96 ") and "--open-mode=append" in call for call in calls)


def test_a_job_with_a_placeholder_does_not_start(folder, slurm, shape):
    _, vllm, where, moved, run = run_of(shape)
    text = bundle.launchers("r", where, moved, run, vllm, bundle.Job())["job.sbatch"]
    code, said = ended(slurm({"job.sbatch": text}))
    assert code == 2
    for option in ("account=SET_ACCOUNT", "partition=SET_PARTITION", "time=SET_TIME"):
        assert f"#SBATCH --{option}" in said
    assert not (folder / "logs").exists()


def test_a_node_that_is_not_fit_ends_the_job_with_what_it_lacks(folder, slurm):
    code, said = ended(slurm({"preflight.sh": f"#!/bin/bash\n[ $HOST != n3 ] || {{ {FAULT.strip()}; }}\n"}))
    assert code == 1
    assert "firstorder: n3: no space left" in said
    assert "a node is not fit to start" in said
    assert not (folder / "logs/7-train-n0.log").exists()


def test_a_node_that_is_known_as_itself_alone_is_refused(slurm):
    code, said = ended(slurm({"tools/getent": "#!/bin/bash\necho 127.0.1.1 STREAM\n"}))
    assert code == 2
    assert "node n2 has no address that others reach: '127.0.1.1'" in said


@pytest.mark.parametrize(
    ("changes", "variables", "queued", "reason"),
    [
        ({"train.sh": f"#!/bin/bash\n{FAULT}"}, {}, False, "no step was saved since it started; not started again"),
        ({"train.sh": STEP + FAULT}, {}, True, "queued again, to go on from"),
        ({"train.sh": STEP + FAULT}, {"SLURM_RESTART_COUNT": "36"}, False, "which is MAX_RESTARTS"),
        ({}, {"SLURM_RESTART_COUNT": "37"}, False, "which is MAX_RESTARTS"),
        (
            {"serve.sh": f"#!/bin/bash\n{FAULT}", "train.sh": "#!/bin/bash\nexec sleep 60\n"},
            {},
            False,
            "the rollout engines ended with code 2, and no step was saved",
        ),
    ],
)
def test_a_fault_is_started_again_where_that_may_help(folder, slurm, changes, variables, queued, reason):
    code, said = ended(slurm(changes, **variables))
    assert (code == 0) == queued == (folder / "tools/requeue").exists()
    assert reason in said
    assert ("no space left" in said) == bool(changes)


def test_sigterm_reaches_the_trainer_and_the_job_is_queued_again(folder, slurm):
    train = STEP + "trap 'echo saved; exit 143' TERM\ntouch $BUNDLE/ready; while true; do sleep 0.05; done\n"
    job = slurm({"train.sh": train})
    deadline = time.monotonic() + 20
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.terminate()
    code, said = ended(job)
    assert code == 0
    assert "SIGTERM: the step is finished and saved first" in said
    assert "queued again" in said
    assert (folder / "logs/7-train-n1.log").read_text() == "saved\n"


def started(folder, script, *words, **variables):
    """A script of the bundle, in an environment whose programs are `tools`."""
    environment = os.environ | {
        "PATH": f"{folder / 'tools'}:{os.environ['PATH']}",
        "ENVIRONMENT": "",
        "MODEL": "/models/m",
        "RUN": str(folder / "run"),
        "SHARED": str(folder / "shared"),
        **variables,
    }
    done = subprocess.run(
        ["bash", folder / script, *words], env=environment, capture_output=True, text=True, timeout=30
    )
    return done.returncode, done.stdout, done.stderr


def tool(folder, name, text):
    (folder / "tools").mkdir(exist_ok=True)
    (folder / "tools" / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / "tools" / name).chmod(0o755)


def test_the_trainers_launcher_calls_what_it_says(folder):
    tool(folder, "torchrun", 'printf "%s\n" "$@"')

    def words():
        given = {"ROLLOUT_HOSTS": "a,b", "HEAD": "h", "ENGINES_PER_NODE": "2"}
        code, out, err = started(folder, "train.sh", "--strict", **given)
        assert code == 0, err
        return out.splitlines()

    first = words()
    addresses = ", ".join(f'"http://{host}:{port}"' for host in "ab" for port in (8001, 8002))
    assert f"vllm.servers=[{addresses}]" in first
    assert "torchtitan.model=/models/m" in first
    assert first[first.index("--shutdown-timeout") + 1] == next(timed(folder, "NOTICE"))
    assert first[-1] == "--strict"
    assert "--resume" not in first
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text("")
    assert "--resume" in words()  # a job that was started again


def test_an_address_that_means_every_node_is_refused(folder):
    tool(folder, "torchrun", "true")
    code, _, err = started(folder, "train.sh", ROLLOUT_HOSTS="a,localhost", HEAD="h")
    assert code == 2
    assert "firstorder: ROLLOUT_HOSTS = 'localhost' means another machine on every node" in err
    assert "HEAD = '127.0.0.1' means another" in started(folder, "train.sh", ROLLOUT_HOSTS="a")[2]
    assert "SERVER_HOST = '127.0.0.1' means another" in started(folder, "serve.sh")[2]


def test_modules_and_the_network_are_what_settings_say(folder):
    tool(folder, "torchrun", 'echo "$NCCL_SOCKET_IFNAME $GLOO_SOCKET_IFNAME $NCCL_DEBUG $LOADED"')
    modules = '() { LOADED="$*"; export LOADED\n}'
    given = {"NODES": "1", "INTERFACE": "ib0", "MODULES": "cuda/13 gcc", "BASH_FUNC_module%%": modules}
    assert started(folder, "train.sh", **given)[1] == "ib0 ib0 WARN load cuda/13 gcc\n"


def test_a_server_that_dies_again_and_again_ends_the_node_with_the_reason(folder):
    tool(folder, "python", 'echo "$*" >> "$RUN.calls"; [[ "$*" != *8001* ]] && exec sleep 60; exit 7')
    given = {"NODES": "1", "ENGINES_PER_NODE": "2", "MAX_FAULTS": "3", "PAUSE": "0"}
    code, _, err = started(folder, "serve.sh", "--set", "dtype=float32", **given)
    assert code == 1
    assert "server 0 ended with code 7, fault 2 of 3; started again in 0 s" in err
    assert "ended 3 times in a row, none of them 1800 s after its start, the last time with code 7" in err
    calls = (folder / "run.calls").read_text().splitlines()
    assert sum("--port 8001" in call for call in calls) == 3
    assert all(call.endswith("--set dtype=float32") for call in calls)


def test_settings_that_a_server_refuses_are_not_tried_again(folder):
    tool(folder, "python", 'echo "firstorder: unknown key" >&2; echo x >> "$RUN.calls"; exit 2')
    code, _, err = started(folder, "serve.sh", NODES="1", ENGINES_PER_NODE="1")
    assert code == 2
    assert "the settings of server 0 are refused" in err
    assert (folder / "run.calls").read_text() == "x\n"


def test_servers_end_when_they_are_told_to(folder):
    tool(folder, "python", 'touch "$RUN.up"; exec sleep 60')
    environment = os.environ | {
        "PATH": f"{folder / 'tools'}:{os.environ['PATH']}",
        "ENVIRONMENT": "",
        "RUN": str(folder / "run"),
        "NODES": "1",
        "ENGINES_PER_NODE": "2",
        "MODEL": "m",
    }
    process = subprocess.Popen(["bash", folder / "serve.sh"], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not (folder / "run.up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 143


def test_the_environment_is_the_lock_and_the_wheel(folder):
    pip = 'echo "pip $*" >> "$RUN.calls"'
    tool(
        folder,
        "python3",
        f'[ "$1" = -c ] || {{ mkdir -p "$3/bin"; echo \'{pip}\' > "$3/bin/pip"; chmod +x "$3/bin/pip"; }}',
    )
    code, out, err = started(folder, "install.sh")
    assert code == 0, err
    wheel = folder / environment.wheel_name()
    assert (folder / "run.calls").read_text().splitlines() == [
        f"pip install -r {folder}/environment.lock",
        f"pip install --no-deps --force-reinstall {wheel}",
        "pip freeze",
    ]
    assert f"{folder}/venv/installed.txt holds all" in out
    tool(folder, "python3", 'echo "Python 3.8"; exit 1')
    code, _, err = started(folder, "install.sh")
    assert (code, err) == (2, "firstorder: Python 3.8 is too old; set PYTHON to Python 3.11 or newer\n")


def test_the_model_comes_from_where_settings_say(folder):
    tool(folder, "hf", 'echo "$*"')
    code, out, _ = started(folder, "download.sh", MODEL_REVISION="abc")
    assert code == 0
    assert out.splitlines()[0] == "download Qwen/Qwen3-30B-A3B-Base --revision abc --local-dir /models/m"
    code, _, err = started(folder, "download.sh", ENVIRONMENT=str(folder / "venv"))
    assert code == 2
    assert "venv is no virtual environment; run install.sh, or set it empty" in err


def test_the_preflight_asks_what_a_role_needs(folder):
    tool(folder, "python", 'echo "$*"')

    def words(role, **given):
        code, out, err = started(folder, "preflight.sh", role, **given)
        return dict(zip(out.split()[3::2], out.split()[4::2], strict=False)) if code == 0 else err

    serve, train = words("serve", ENGINES_PER_NODE="2"), words("train", NODE_RANK="0")
    assert (serve["--gpus"], serve["--ports"]) == ("2", "8001,8002")
    assert (train["--gpus"], train["--ports"], train["--nodes"]) == ("8", "29500", "8")
    assert train["--notice"] == next(timed(folder, "NOTICE"))
    assert "takes train or serve, got 'both'" in words("both")


def test_settings_can_be_read_back(shape):
    given, where = engines(), planned(shape)
    text = bundle.settings(*given, where)
    again = engines()  # the same models, so that a key that is not one would be refused
    assert 'quantization = "fp8_per_block"' in text
    assert f"max_sequences = {where.sequences}" in text
    assert 'kind = "sums"' in text
    assert "servers" not in text
    assert again == given


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
        rows = archive.read("firstorder-0.1.0.dist-info/RECORD").decode().splitlines()
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
    "no evidence": (["minirl", "--evidence", "/nowhere"], "--evidence /nowhere is no gate.json"),
    "the method": (["minirl", "--set", "clip.low=0.1"], "would change the recipe"),
    "no task": (["minirl"], "no task is set, so nothing says what to train on"),
    "a task here alone": (
        ["minirl", "--set", "task.kind=math", "--set", 'task.files=["problems.jsonl"]'],
        "task.files: problems.jsonl is relative, and nodes run elsewhere",
    ),
    "no time": (["minirl", "--time", "a day"], "--time must be like 24:00:00"),
    "too short a time": (["minirl", "--time", "1:00:00", "--set", "task.kind=sums"], "ends before a step does"),
    "an account": (["minirl", "--account", "a b"], "--account must be a name of this cluster's, got 'a b'"),
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


def test_a_run_folder_is_promoted_byte_for_byte(other):
    from firstorder.cli.api.evidence import read_source
    from firstorder.cli.api.recipes import resolve
    from firstorder.core.settings.toml import dump

    content, recipe, task = read_source(str(other))
    assert task == {}  # the simulator's is another
    assert content == (other / "config.toml").read_bytes()
    assert recipe.about.name == "minirl-r3-n2"
    assert read_source("minirl-r3-n2")[0].decode() == dump(resolve("minirl-r3-n2"))


def test_an_executable_is_one(tmp_path, shape, monkeypatch, capsys):
    from firstorder.cli.api import promote

    monkeypatch.setattr(promote, "figures", lambda runs: {})
    recipe = recipe_of("qwen3-30b-a3b-r2-n1")
    titan, vllm, where, moved, whole = run_of(shape, "qwen3-30b-a3b-r2-n1")
    task = models.engines(["task.kind=math", 'task.files=["/data/problems.jsonl"]'])[2]
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
    notes = promote.remarks(recipe, where, moved, whole)
    assert any("so a kill without notice loses as much" in note for note in notes)
    assert any("clip.kind = minirl: theta equals theta_old" in note for note in notes)
    assert any("router_replay.mode = R2" in note for note in notes)
    content = source(recipe.about.name).encode()
    given = {"sections": (titan, vllm, task), "job": bundle.Job()}
    files = promote.contents(recipe, content, shape, where, moved, whole, dry, gate, notes, **given)
    promote.write(tmp_path / "out", files, tmp_path, recipe, None, gate)
    out = tmp_path / "out"
    assert (out / "recipe.toml").read_bytes() == content
    assert all(os.stat(out / name).st_mode & stat.S_IXUSR for name in bundle.SCRIPTS)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["stable"] is False
    assert manifest["sha256"] == {k: v for k, v in bundle.manifest(out).items() if k != "manifest.json"}
    text = (out / "README.md").read_text()
    assert "UNSTABLE, and promoted with --force" in text
    for file in readme.FILES:
        for part in file.format(wheel=environment.wheel_name()).split(", "):
            assert (out / part).exists()
    assert f"{whole.gpu_hours:,.0f} GPU-hours** of 128 GPUs" in text
    assert "no GPU has confirmed it" in text
    assert "task.kind = `math`. Judged by: math-verify" in text
    assert "- `/data/problems.jsonl`" in text
    about = {"folder": out, "recipe": recipe, "task": task, "gate": gate, "notes": notes}
    promote.PromoteResult(document={}, where=where, moved=moved, whole=whole, dry=dry, **about).print()
    shown = capsys.readouterr().out
    assert "task: math /data/problems.jsonl" in shown
    assert f"at most {whole.total / 3600:,.0f} h and {whole.gpu_hours:,.0f} GPU-hours: 500 steps" in shown


def test_every_kind_of_task_says_what_judges_it():
    from typing import get_args

    from firstorder.backends.tasks.config import Kind

    assert set(readme.JUDGES) == set(get_args(Kind))
    (said,) = readme.trained(models.engines(["task.kind=reasoning-gym", "task.dataset=gcd"])[2])
    assert "data set `gcd`" in said


def test_a_source_may_bring_its_task(tmp_path):
    from firstorder.cli.api.evidence import read_source

    file = tmp_path / "own.toml"
    file.write_text(source("minirl-r3-n2") + '\n[task]\nkind = "sums"\n')
    assert models.engines([], read_source(str(file))[2])[2].kind == "sums"


def test_a_file_of_settings_lies_between_the_recipe_and_assignments(tmp_path):
    from firstorder.cli.api.compose import compose_engines

    file = tmp_path / "engines.toml"
    where = planned(models.shape_of())
    file.write_text(bundle.settings(*engines(), where))
    made = compose_engines("minirl-r3-n2", ["torchtitan.model=m", "vllm.tensor=2"], str(file))
    vllm = made.vllm
    assert made.recipe == recipe_of("minirl-r3-n2")
    assert (made.torchtitan.expert, made.torchtitan.model) == (8, "m")
    assert (vllm.quantization, vllm.tensor, vllm.kv_cache_mib) == ("fp8_per_block", 2, where.kv_cache >> 20)
    with pytest.raises(ConfigError, match="no recipe or file"):
        compose_engines("minirl-r3-n2", [], str(tmp_path / "nowhere.toml"))
