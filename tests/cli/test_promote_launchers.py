"""The scripts of a bundle: filled in, parsed, and run with stand-ins for the programs that they call."""

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import yaml
from promotions import promotion_of, setting

from firstorder.backends.promote import bundle, environment
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.core.settings.toml import build


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
    assert given["signal"] == f"B:TERM@{setting(folder, 'NOTICE')}"
    assert (given["account"], given["partition"], given["time"]) == ("lab", "gpu,long", "1-00:00:00")
    assert (given["nodes"], given["cpus-per-task"], given["open-mode"]) == ("16", "96", "append")
    assert "requeue" in given


def test_kubernetes_gets_shared_memory_limits_and_grace(folder):
    jobs = {each["metadata"]["name"]: each for each in yaml.safe_load_all((folder / "job.yaml").read_text())}
    assert list(jobs) == ["qwen3-30b-r3", "qwen3-30b-r3-rollout", "qwen3-30b-r3-train"]
    for role, limit, count in (("rollout", 5, 8), ("train", setting(folder, "MAX_RESTARTS"), 8)):
        spec = jobs[f"qwen3-30b-r3-{role}"]["spec"]
        assert (spec["completions"], spec["backoffLimit"]) == (count, limit)
        pod = spec["template"]["spec"]
        assert {"name": "memory", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
        (container,) = pod["containers"]
        assert {"name": "memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert container["image"] == "IMAGE"  # capitals: no valid name of an image, nor of a claim
        assert f"/bundle/preflight.sh {'serve' if role == 'rollout' else 'train'} &&" in container["command"][-1]
        subprocess.run(["bash", "-n", "-c", container["command"][-1]], check=True)
    assert pod["terminationGracePeriodSeconds"] == setting(folder, "NOTICE")
    hosts = {each["name"]: each["value"] for each in container["env"]}["ROLLOUT_HOSTS"].split(",")
    assert hosts == [f"qwen3-30b-r3-rollout-{i}.qwen3-30b-r3" for i in range(8)]


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
    assert first[first.index("--shutdown-timeout") + 1] == str(setting(folder, "NOTICE"))
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
    assert train["--notice"] == str(setting(folder, "NOTICE"))
    assert "takes train or serve, got 'both'" in words("both")


def test_settings_can_be_read_back(shape):
    promotion = promotion_of(shape)
    tree = tomllib.loads(bundle.settings(promotion))
    vllm = build(Vllm, tree["vllm"])
    assert build(Torchtitan, tree["torchtitan"]) == promotion.titan
    assert (vllm.quantization, vllm.max_sequences) == ("fp8_per_block", promotion.plan.sequences)
    assert build(TaskSettings, tree["task"]) == promotion.task
    assert "servers" not in tree["vllm"]
