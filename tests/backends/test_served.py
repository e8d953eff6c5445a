"""vLLM behind HTTP: the same responses as in process, weights that arrive, servers that die."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from safetensors.torch import load_file

from firstorder.backends.rollouts import collate
from firstorder.backends.tasks import sums
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.backends.vllm.config import Vllm
from firstorder.backends.vllm.served import ServedEngine, ServerError, response
from firstorder.cli.main import run
from firstorder.core.errors import DataError
from firstorder.core.recipe import Recipe

COMMON = {"dtype": "float32", "temperature": 0.7, "max_prompt": 40, "kv_cache_mib": 16}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(address):
    try:
        urllib.request.urlopen(f"{address}/health", timeout=2).read()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shape, write_model):
    return write_model(tmp_path_factory.mktemp("model"), shape)


def start(folder, port, log):
    """A server that answers, as (address, process)."""
    command = [sys.executable, "-m", "firstorder.backends.vllm.serve", str(folder), "--port", str(port)]
    command += [word for key, value in COMMON.items() for word in ("--set", f"{key}={value}")]
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 240
    while not answers(address):
        log.seek(0)
        assert process.poll() is None, log.read()[-200:]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return address, process


def kill(process):
    """What an out-of-memory killer does, to the server and its workers."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """Address and process of a server; a test that kills it puts another process there."""
    with (tmp_path_factory.mktemp("log") / "server.log").open("w+") as log:
        running = [*start(folder, free_port(), log), log]
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
    return responses, collate(prompts, responses, [0.0] * 12, list(range(12)), 4, 2)


def apart(trainer, batch):
    return float((trainer.score(batch).logp - batch.logp_mu)[batch.mask].abs().max())


def test_log_probs_and_routes_are_the_trainers(engine, trainer):
    responses, batch = sampled(engine)
    assert apart(trainer, batch) < 1e-4
    assert torch.equal(trainer.score(batch).routes.sort(-1).values, batch.routes.sort(-1).values)
    assert [r.tokens for r in responses] == [r.tokens for r in sampled(engine)[0]]
    assert any(r.ended for r in responses) or all(len(r.tokens) == 24 for r in responses)


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


def test_a_refusal_is_passed_on(engine):
    with pytest.raises(ServerError, match="refused: 4"):
        engine.generate([sums.encode("1" * 70)], [0])


def test_an_answer_without_routes_is_named():
    with pytest.raises(DataError, match="returns no routed experts"):
        response({"token_ids": [1], "logprobs": {"token_logprobs": [-0.1]}, "finish_reason": "stop"})


def test_a_server_killed_while_it_answers_comes_back_with_the_weights_it_had(engine, server, folder, monkeypatch):
    moved = [(name, 1.1 * w) for name, w in load_file(folder / "model.safetensors").items()]
    engine.sync(moved, 7)
    before, one, asked = sampled(engine)[1], engine._one, []
    monkeypatch.setattr(engine, "settings", engine.settings.model_copy(update={"max_sequences": 1, "timeout": 240.0}))

    def fatal(number, prompt, seed):
        asked.append(number)
        if len(asked) == 5:
            kill(server[1])
            server[1] = start(folder, int(server[0].rpartition(":")[2]), server[2])[1]
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
    with pytest.raises(ServerError, match="were started anew 3 times while they answered 1 prompts"):
        engine.generate([sums.encode("1+1=")], [0])


def test_a_server_that_died_is_named_after_the_wait(engine, server):
    kill(server[1])
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"does not answer .* within vllm.timeout = 5 s; start it with"):
        engine.generate([sums.encode("1+1=")], [0])
    assert time.monotonic() - started < 30
