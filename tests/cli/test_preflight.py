"""What a node is asked before it starts: every fault is a line with a remedy."""

import json
import socket
import subprocess
import sys
import time

import pytest

from firstorder.backends.folder import Shape, write_config
from firstorder.backends.promote import preflight
from firstorder.backends.promote.environment import lock

MIB, GIB = 1 << 20, 1 << 30
SHAPE = Shape(
    vocab_size=32,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    moe_intermediate_size=64,
    num_experts=8,
    num_experts_per_tok=2,
    rope_theta=10000.0,
    max_position_embeddings=256,
)


def test_versions_are_held_against_the_lock():
    text = "".join(f"{line}\n" for line in lock().splitlines() if not line.startswith(("vllm=", "torchtitan=")))
    assert preflight.versions(text) == []
    assert preflight.versions("# a comment\npytest==0.1\n") == [
        f"pytest {pytest.__version__}, and environment.lock has 0.1; run install.sh, and set ENVIRONMENT"
    ]
    many = preflight.versions("".join(f"no-such-package-{i}==1\n" for i in range(5)))
    assert many[0].startswith("no-such-package-0 is missing, and environment.lock has 1; run install.sh")
    assert len(many) == 4
    assert many[3].startswith("2 more packages differ")


def test_gpus_are_counted_measured_and_idle():
    def said(*rows):
        return preflight.gpus(2, 80 * GIB, lambda words: "".join(f"{row}\n" for row in rows))

    assert said("81559, 4", "81559, 4", "10, 10") == []
    assert said("81559, 4") == ["1 GPUs, and 2 are needed"]
    assert "GPU 1 has 40960 MiB, and the bundle was made for 81920; promote with --gpu" in said("81559, 4", "40960, 4")
    assert said("81559, 70000", "81559, 4") == ["GPU 0 is in use: 70000 MiB; end what runs there"]
    assert preflight.gpus(0, 80 * GIB, lambda words: 1 / 0) == []

    def missing(words):
        raise FileNotFoundError(2, "No such file or directory", words[0])

    assert "nvidia-smi does not run" in preflight.gpus(1, GIB, missing)[0]


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_config(folder, SHAPE, 1, 0)
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def test_a_model_is_whole_and_the_one_that_was_promoted(model):
    sizes = json.loads(json.dumps(vars(SHAPE)))
    assert preflight.model(model, sizes) == preflight.model(model, None) == []
    (wrong,) = preflight.model(model, sizes | {"num_hidden_layers": 48})
    assert wrong == f"{model} has num_hidden_layers = 2, and the bundle was made for 48; see MODEL in settings.env"
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "1.st", "b": "2.st"}}))
    (model / "1.st").write_text("")
    assert preflight.model(model, None) == [f"{model} lacks 2.st; run download.sh again"]
    (model / "model.safetensors.index.json").write_text("[")
    assert "cannot be read; run download.sh again" in preflight.model(model, None)[0]
    assert "see MODEL in settings.env" in preflight.model(model / "nowhere", None)[0]


def test_a_port_that_is_taken_is_named():
    with socket.socket() as one:
        one.bind(("", 0))
        one.listen()
        port = one.getsockname()[1]
        assert preflight.ports([port]) == [
            f"port {port}: Address already in use; set SERVER_PORT or HEAD_PORT in settings.env"
        ]
    assert preflight.ports([port]) == []


def test_a_name_that_leads_back_is_found_where_others_must_reach_it(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "n0")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    (said,) = preflight.name(2, "")
    assert said == "n0 is 127.0.1.1 here, which other nodes do not reach; set INTERFACE in settings.env"
    assert preflight.name(1, "") == preflight.name(2, "ib0") == []
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
    assert preflight.name(2, "") == []


def test_space_is_measured_where_a_folder_will_be(tmp_path):
    later = tmp_path / "run" / "that" / "comes"
    assert preflight.space([later], 1) == []
    (said,) = preflight.space([later], 1 << 60)
    assert said.startswith(f"{later} has ")
    assert f"GiB free, and {1 << 30} are needed; see settings.env" in said


def test_problems_must_lie_where_they_are_read(tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text("")
    (said,) = preflight.task({"task": {"files": [str(held), "/data/none.jsonl"]}})
    assert said.startswith("task.files: /data/none.jsonl cannot be read here; put it where every node")
    assert preflight.task({}) == []


def test_a_job_must_last_for_a_step():
    soon = {"SLURM_JOB_END_TIME": str(int(time.time()) + 3000)}
    assert preflight.left(1000, soon) == preflight.left(10**6, {}) == []
    (said,) = preflight.left(5000, soon)
    assert said.endswith("are left to the job, and a start and a step need 6200; raise --time")


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    (folder / "evidence").mkdir(parents=True)
    dry = {"plan": {"gpu": {"memory": 80 * GIB}}, "shape": vars(SHAPE)}
    (folder / "evidence/dryrun.json").write_text(json.dumps(dry))
    (folder / "engines.toml").write_text("")
    (folder / "environment.lock").write_text("no-such-package==1\n")
    (folder / "recipe.toml").write_text("changed")
    hashes = dict.fromkeys(("recipe.toml", "settings.env", "evidence/dryrun.json"), "0")
    (folder / "manifest.json").write_text(json.dumps({"sha256": hashes}))
    return folder


def test_every_fault_of_a_node_is_a_line(bundle, model, monkeypatch, capsys):
    words = [str(bundle), "--model", str(model)]
    monkeypatch.setattr(sys, "argv", ["preflight", *words])
    with pytest.raises(SystemExit) as raised:
        preflight.main()
    assert raised.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"firstorder: {socket.gethostname()}: ") for line in lines)
    assert lines[0].endswith("recipe.toml is not the file that was promoted; copy the bundle again")  # settings may be
    (bundle / "environment.lock").write_text("")
    (bundle / "manifest.json").unlink()
    command = [sys.executable, "-m", "firstorder.backends.promote.preflight", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{socket.gethostname()}: fit to start\n"
