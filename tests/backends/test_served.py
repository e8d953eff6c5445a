"""vLLM behind HTTP: the same responses as in process, weights that arrive, servers that die."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from servers import free_port, kill, start

from firstorder.backends.rollouts import collate
from firstorder.backends.tasks import sums
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.backends.vllm.client import ServerError
from firstorder.backends.vllm.config import Vllm
from firstorder.backends.vllm.served import ServedEngine
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe

COMMON = {"dtype": "float32", "temperature": 0.7, "max_prompt": 40, "kv_cache_mib": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shape, write_model):
    """With defaults for sampling that nobody asked for."""
    made = write_model(tmp_path_factory.mktemp("model"), shape)
    defaults = {"top_k": 5, "top_p": 0.8, "temperature": 0.6, "repetition_penalty": 1.3, "max_new_tokens": 3}
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": sums.END, "do_sample": True} | defaults))
    return made


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """Address and process of a server; a test that kills it puts another process there."""
    with (tmp_path_factory.mktemp("log") / "server.log").open("w+") as log:
        running = [*start(folder, free_port(), log, COMMON), log]
        yield running
        kill(running[1])


@pytest.fixture(scope="module")
def trainer(folder, tmp_path_factory):
    settings = Torchtitan(model=str(folder), dtype="float32", pack_length=64)
    return Trainer(settings, Recipe(), COMMON["temperature"], tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def engine(server, folder):
    # the same server twice stands for two replicas
    made = ServedEngine(Vllm(servers=(server[0], server[0]), timeout=5.0, **COMMON), str(folder), [sums.END])
    yield made
    made.close()


def sampled(engine):
    prompts = [sums.encode(sums.prompt(i)) for i in range(12)]
    responses = engine.generate(prompts, range(12))
    return responses, collate(prompts, responses, [0.0] * 12, list(range(12)), 4, 2, 8)


def apart(trainer, batch):
    return float((trainer.score(batch).logp - batch.logp_mu)[batch.mask].abs().max())


def test_log_probs_and_routes_are_the_trainers(engine, trainer):
    responses, batch = sampled(engine)
    assert apart(trainer, batch) < 1e-4
    assert torch.equal(trainer.score(batch).routes.sort(-1).values, batch.routes.sort(-1).values)
    assert [r.tokens for r in responses] == [r.tokens for r in sampled(engine)[0]]
    assert any(r.ended for r in responses) or all(len(r.tokens) == 24 for r in responses)


@pytest.mark.parametrize("cut", [{"top_p": 0.8}, {"top_k": 8}, {"min_p": 0.2, "top_k": 9}])
def test_a_server_says_which_tokens_it_kept(server, folder, trainer, cut):
    made = ServedEngine(Vllm(servers=(server[0],), timeout=5.0, max_kept=19, **COMMON, **cut), str(folder), [sums.END])
    _, batch = sampled(made)
    made.close()
    counts = (batch.kept >= 0).sum(-1)[batch.mask]
    assert 1 <= int(counts.min()) <= int(counts.max()) <= cut.get("top_k", 19)
    assert apart(trainer, batch) < 1e-4
    assert apart(trainer, dataclasses.replace(batch, kept=None)) > 0.1


def test_a_server_that_returns_too_few_log_probs_is_refused(server, folder):
    with pytest.raises(
        ConfigError, match=r"returns 20 log-probs a token, and vllm.max_kept = 256 tokens kept need one"
    ):
        ServedEngine(Vllm(servers=(server[0],), timeout=5.0, top_p=0.9, **COMMON), str(folder), [sums.END])


def test_served_and_in_process_are_one_bit_for_bit(engine, trainer, folder):
    from firstorder.backends.vllm import arguments

    settings = Vllm(**COMMON)
    arguments.prepare(settings)
    from firstorder.backends.vllm.engine import InProcessEngine

    here = sampled(InProcessEngine(settings, str(folder), [sums.END], 0))[1]
    there = sampled(engine)[1]
    for name in ("tokens", "mask", "logp_mu", "routes"):
        assert torch.equal(getattr(here, name), getattr(there, name)), name
    assert apart(trainer, here) < 1e-4


def test_weights_arrive_and_old_ones_are_removed(engine, trainer):
    for version in (1, 2):
        state = trainer.model.state_dict()
        with torch.no_grad():
            for w in state.values():
                w.to_local().mul_(1.0 + 0.05 * version * torch.randn(w.to_local().shape))
        trainer.model.load_state_dict(state)
        assert apart(trainer, sampled(engine)[1]) > 1e-2
        engine.sync(trainer.weights(), version)
        assert apart(trainer, sampled(engine)[1]) < 1e-4
    assert [folder.name for folder in engine._shared.iterdir()] == ["version-2"]


def test_a_run_trains_on_rollouts_from_a_server(server, folder, engine, trainer, tmp_path):
    assert engine.settings.servers[0] == server[0]
    settings = {f"vllm.{key}": value for key, value in COMMON.items()} | {
        "vllm.servers": f'["{server[0]}"]',
        "task.kind": "sums",
        "torchtitan.model": folder,
        "torchtitan.dtype": "float32",
        "torchtitan.pack_length": 64,
        "schedule.steps": 2,
        "schedule.prompts": 2,
        "schedule.group_size": 4,
    }
    engine.sync(load_file(folder / "model.safetensors").items(), 0)  # the tests before have moved the weights
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    out = tmp_path / "run"
    assert run(["train", "minirl-r3-n2", "--backend", "torchtitan", *words, "--out", str(out)]) == 0
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2
    assert all(abs(m["kl"]) < 1e-5 and m["route/flip_rate"] == 0.0 for m in metrics)


def ranks(words, out, port):
    """Two ranks that nobody watches over, as processes."""
    found = []
    for rank in range(2):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with (out / f"rank-{rank}.log").open("w") as log:
            environment = os.environ | {name: str(value) for name, value in env.items()}
            found.append(subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, env=environment))
    return found


def test_when_a_rank_is_killed_the_other_says_so_and_the_run_goes_on_bit_for_bit(server, folder, engine, tmp_path):
    vllm = COMMON | {"servers": [server[0]]}
    settings = {f"vllm.{key}": value for key, value in COMMON.items()} | {
        "vllm.servers": json.dumps([server[0]]),
        "torchtitan.model": folder,
        "task.kind": "sums",
        "torchtitan.dtype": "float32",
        "torchtitan.pack_length": 64,
        "torchtitan.expert": 2,
        "torchtitan.timeout": 120,
        "torchtitan.checkpoint_every": 1,
        "schedule.steps": 4,
        "schedule.prompts": 2,
        "schedule.group_size": 4,
        "optimizer.lr": 0.01,
        "optimizer.weight_decay": 1.0,  # no reward yet, but the weights must move
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = ["train", "minirl-r3-n2", "--backend", "torchtitan", *words]
    engine.sync(load_file(folder / "model.safetensors").items(), 0)
    script = str(Path(__file__).with_name("killed.py"))
    both = ranks([script, str(tmp_path), str(folder), json.dumps(vllm), *command], tmp_path, free_port())
    deadline = time.monotonic() + 240
    while not (tmp_path / "killed/checkpoints/step-0000002.pt").exists():
        assert all(one.poll() is None for one in both), (tmp_path / "rank-0.log").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    both[1].kill()  # in the middle of the third step
    assert both[0].wait(timeout=60) == 2
    said = (tmp_path / "rank-0.log").read_text()
    assert "firstorder: rank 0 lost another rank" in said
    assert "start all ranks again with --resume" in said
    go_on = [*command, "--out", str(tmp_path / "killed"), "--resume"]
    again = ranks(["-c", "from firstorder.cli.main import main; main()", *go_on], tmp_path, free_port())
    assert [one.wait(timeout=240) for one in again] == [0, 0], (tmp_path / "rank-0.log").read_text()[-2000:]
    for log, name in itertools.product(("metrics.jsonl", "receipts.jsonl"), ("killed", "asked")):
        assert (tmp_path / name / log).read_text() == (tmp_path / "whole" / log).read_text()
    weights = [load_file(tmp_path / run / "model/model.safetensors") for run in ("whole", "killed")]
    assert all(torch.equal(w, weights[1][name]) for name, w in weights[0].items())
    assert not torch.equal(weights[0]["lm_head.weight"], load_file(folder / "model.safetensors")["lm_head.weight"])


def test_a_refusal_is_passed_on(engine):
    with pytest.raises(ServerError, match="refused: 4"):
        engine.generate([sums.encode("1" * 70)], [0])


OTHERS = {
    "layers": ({"num_hidden_layers": 2}, {}, "serves another model: its num_hidden_layers = 4, and"),
    "vocabulary": ({"vocab_size": 64}, {}, "its vocab_size = 32, and"),
    "length": ({}, {"max_prompt": 90}, "takes 64 tokens, fewer than"),
    "dtype": ({}, {"dtype": "bfloat16"}, "runs with dtype = float32, and vllm.dtype = bfloat16"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_server_of_another_model_is_found_at_the_start(name, server, shape, write_model, tmp_path, capsys):
    sizes, settings, message = OTHERS[name]
    model = tmp_path / "model"
    model.mkdir()
    write_model(model, dataclasses.replace(shape, **sizes))
    with pytest.raises(ConfigError, match=message):
        ServedEngine(Vllm(servers=(server[0],), **COMMON | settings), str(model), [sums.END])
    settings = {f"vllm.{key}": value for key, value in (COMMON | settings).items()} | {
        "vllm.servers": f'["{server[0]}"]',
        "torchtitan.model": model,
        "torchtitan.pack_length": 128,
        "task.kind": "sums",
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    capsys.readouterr()
    assert run(["train", "minirl-r3-n2", "--backend", "torchtitan", *words, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_shared_is_named(server, folder):
    with pytest.raises(ConfigError, match=r"vllm.shared_folder = /nowhere cannot be written: No such"):
        ServedEngine(Vllm(servers=(server[0],), shared_folder="/nowhere", **COMMON), str(folder), [sums.END])


def test_an_address_that_is_no_such_server_says_how_to_start_one(server, folder):
    with pytest.raises(ServerError, match=r"refused: 404 .*; start the server with"):
        ServedEngine(Vllm(servers=(f"{server[0]}/elsewhere",), **COMMON), str(folder), [sums.END])


def test_a_server_killed_while_it_answers_comes_back_with_the_weights_it_had(engine, server, folder, monkeypatch):
    moved = [(name, 1.1 * w) for name, w in load_file(folder / "model.safetensors").items()]
    engine.sync(moved, 7)
    before, one, asked = sampled(engine)[1], engine._one, []
    monkeypatch.setattr(engine, "settings", engine.settings.model_copy(update={"max_sequences": 1, "timeout": 240.0}))

    def fatal(number, prompt, seed):
        asked.append(number)
        if len(asked) == 5:
            kill(server[1])
            server[1] = start(folder, int(server[0].rpartition(":")[2]), server[2], COMMON)[1]
        return one(number, prompt, seed)

    monkeypatch.setattr(engine, "_one", fatal)
    after = sampled(engine)[1]
    assert asked == [*range(12), *range(12)]  # the first four were not lost, but the next eight were of other weights
    assert torch.equal(after.tokens, before.tokens)
    assert torch.equal(after.routes, before.routes)
    torch.testing.assert_close(after.logp_mu, before.logp_mu, rtol=0, atol=1e-5)


def test_servers_that_do_not_stay_up_are_named(engine, monkeypatch):
    ready, count = engine._ready, iter(range(99))
    monkeypatch.setattr(engine, "_ready", lambda: [*ready(), next(count)])
    with pytest.raises(ServerError, match="restarted 3 times while they answered 1 prompts"):
        engine.generate([sums.encode("1+1=")], [0])


def test_a_server_that_died_is_named_after_the_wait(engine, server):
    kill(server[1])
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"does not answer .* within vllm.timeout = 5 s; start the server with"):
        engine.generate([sums.encode("1+1=")], [0])
    assert time.monotonic() - started < 30
