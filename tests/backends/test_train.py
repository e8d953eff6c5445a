"""Whole runs through the command line: cold start, training, an interruption, bad input."""

import json
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from reference import Reference
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from firstorder.backends import export, extras, pair
from firstorder.backends.tasks import sums
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.cli.main import run
from firstorder.core.errors import DataError, DiskError
from firstorder.core.formats.chunk import chunks
from firstorder.core.formats.registry import open_dump
from firstorder.core.method.recipe import Recipe
from firstorder.core.routing import flips
from firstorder.core.training.diagnostics import diagnose

SMALL = ["schedule.steps=4", "schedule.prompts=8", "schedule.group_size=4", "optimizer.lr=1e-3"]
ENGINES = [
    *("torchtitan.dtype=float32", "torchtitan.pack_length=64", "torchtitan.checkpoint_every=1"),
    *("torchtitan.evaluate_every=2", "torchtitan.evaluate_prompts=8"),
    *("vllm.dtype=float32", "vllm.max_prompt=40", "vllm.kv_cache_mib=16", "task.kind=sums"),
]


def sets(*assignments):
    return [word for one in assignments for word in ("--set", one)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made") / "model"
    assert run(["coldstart", "steps", "--out", str(made), "--steps", "100"]) == 0  # it solves a few sums
    return made


@pytest.fixture(scope="module")
def command(folder):
    model = sets(f"torchtitan.model={folder}")
    return ["train", "minirl-r3-n2", "--backend", "torchtitan", *model, *sets(*SMALL, *ENGINES)]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run([*command, "--dump", "--out", str(out)]) == 0
    return out


def lines(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def test_a_cold_start_is_a_folder_that_transformers_loads(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 5e6
    assert model.config.num_experts == 8
    assert tokenizer("1+1=")["input_ids"] == sums.encode("1+1=")


def test_a_cold_start_learns(tmp_path, capsys):
    losses = []
    for steps in (1, 12):
        assert run(["coldstart", "direct", "--out", str(tmp_path / str(steps)), "--steps", str(steps)]) == 0
        losses.append(float(capsys.readouterr().out.split("loss ")[1].split()[0]))
    assert losses[1] < 0.8 * losses[0]


def test_a_run_records_what_the_simulator_records(whole, tmp_path):
    metrics, receipts = lines(whole, "metrics"), lines(whole, "receipts")
    assert [m["step"] for m in metrics] == [r["step"] for r in receipts] == [0, 1, 2, 3]
    simulated = tmp_path / "simulated"
    tiny = sets("sim.vocab=3", "sim.horizon=2", "sim.prompts=2", "sim.width=4", "sim.evaluate_every=0", *SMALL)
    assert run(["train", "minirl-r3-n2", *tiny, "--out", str(simulated)]) == 0
    names = {name for name in metrics[0] if "_layer_" not in name}
    assert names == {name for name in lines(simulated, "metrics")[0] if "_layer_" not in name}
    of_run = [
        {name for name in each if "_layer_" not in name} for each in (receipts[0], lines(simulated, "receipts")[0])
    ]
    assert of_run[0] == of_run[1]
    assert [m["step"] for m in metrics if "eval/reward" in m] == [1, 3]
    assert all(abs(m["kl"]) < 1e-5 for m in metrics)  # float32 on both sides
    # where rewards of a group differ weights move; in how many steps hangs on what the processor's kernels sample
    assert any(m["update/grad_norm"] > 0 for m in metrics)
    assert receipts[0]["ratio_not_one"] > 0
    layers = {f"replay/rows_replayed_layer_{i}" for i in range(4)}
    assert all(
        each[name] == 1 for each in receipts for name in ("replay/rows_replayed", "replay/routes_arrived", *layers)
    )
    assert all(each["replay/routes_missing"] == each["replay/rows_live"] == 0 for each in receipts)
    assert {each["inert/router_replay"] for each in receipts} == {0.0}


def test_the_dump_of_a_run_says_what_the_run_logged(whole):
    for line in lines(whole, "metrics"):
        dump = open_dump([whole / f"dump/step_{line['step']:06d}.parquet"])
        (chunk,) = chunks(dump.samples())
        said = diagnose(chunk.stats())
        for name in ("kl", "k3_kl", "seq_eff_sample_size", "rollout_actor_probs_pearson_corr"):
            assert float(said[name]) == pytest.approx(line[name], rel=1e-9, abs=1e-15), name
        flipped = flips(chunk.routes, chunk.routes_old)[:, :-1][chunk.mask[:, 1:]]
        assert float(flipped.double().mean()) == pytest.approx(line["route/flip_rate"], abs=1e-12)


def test_every_logged_name_is_explained(whole):
    explained = json.loads((whole / "quantities.json").read_text())
    logged = {name for log in ("metrics", "receipts") for line in lines(whole, log) for name in line}
    assert logged - set(explained) == {"step"}
    assert "eval/reward" in logged


def test_a_run_is_shown_in_a_sink(command, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    assert run([*command, "--out", str(out), "--resume", "--track", "tensorboard"]) == 0
    events = EventAccumulator(str(out / "tracking/tensorboard")).Reload()
    assert [e.step for e in events.Scalars("reward")] == [0, 1, 2, 3]


@pytest.mark.parametrize("last", [0, 2])
def test_an_interrupted_run_goes_on_bit_for_bit(command, whole, tmp_path, monkeypatch, last):
    out = tmp_path / "run"
    save = pair.EnginePair.sync_weights

    def sync_weights(self):
        save(self)
        if self._next == last + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pair.EnginePair, "sync_weights", sync_weights)
        assert run([*command, "--out", str(out)]) == 130
    assert run(["resume", str(out)] if last else [*command, "--out", str(out), "--resume"]) == 0
    assert lines(out, "metrics") == lines(whole, "metrics")
    assert lines(out, "receipts") == lines(whole, "receipts")


def test_a_finished_run_is_made_longer_and_is_the_one_that_was_longer_from_the_start(command, whole, tmp_path):
    out = tmp_path / "run"
    assert run([*command, *sets("schedule.steps=2"), "--out", str(out)]) == 0
    assert run(["resume", str(out), *sets("schedule.steps=4")]) == 0
    assert lines(out, "metrics") == lines(whole, "metrics")
    assert lines(out, "receipts") == lines(whole, "receipts")


@pytest.mark.parametrize("moment", ["checkpoints/torchtitan/step-2/__0_0.distcp", "checkpoints/step-0000002.pt"])
def test_a_killed_run_goes_on_bit_for_bit(command, whole, tmp_path, moment):
    out = tmp_path / "run"
    words = [sys.executable, "-c", "from firstorder.cli.main import main; main()", *command, "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (out / moment).exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        assert time.monotonic() < deadline
    process.kill()  # the first moment is in the middle of a checkpoint, the second in the middle of the next step
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (out / "metrics.jsonl").read_text().count("\n") < 4
    assert run([*command, "--out", str(out), "--resume"]) == 0
    assert lines(out, "metrics") == lines(whole, "metrics")
    assert lines(out, "receipts") == lines(whole, "receipts")


def test_sigterm_ends_a_run_after_a_step_that_is_saved(command, whole, tmp_path):
    out = tmp_path / "run"
    rare = [*command, *sets("torchtitan.checkpoint_every=1000"), "--out", str(out)]
    words = [sys.executable, "-c", "from firstorder.cli.main import main; main()", *rare]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (out / "metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        assert time.monotonic() < deadline
    process.terminate()  # at a step's end or in the next step
    _, err = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGTERM, err[-2000:]
    done = len(lines(out, "metrics"))
    assert 0 < done < 4
    assert [file.name for file in (out / "checkpoints").glob("*.pt")] == [f"step-{done:07d}.pt"]
    assert f"SIGTERM after step {done - 1}, saved; go on with `firstorder resume {out}`" in err
    assert run([*rare, "--resume"]) == 0
    assert lines(out, "metrics") == lines(whole, "metrics")
    assert lines(out, "receipts") == lines(whole, "receipts")


def test_a_step_that_fails_is_named_and_the_run_goes_on_bit_for_bit(command, whole, tmp_path, monkeypatch, capsys):
    out, forward, taken = tmp_path / "run", Trainer._forward, []
    broken = {5: lambda logp: logp + torch.empty(2**50), 9: lambda logp: logp * float("nan")}

    def failing(self, packed, tokens, *kept, **wanted):
        logp, *rest = forward(self, packed, tokens, *kept, **wanted)
        taken.append(logp.requires_grad)
        return broken.pop(sum(taken))(logp) if sum(taken) in broken and logp.requires_grad else logp, *rest

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_forward", failing)
        for words, remedy in (([], "lower torchtitan.microbatch_rows"), (["--resume"], "lower optimizer.lr or bound")):
            capsys.readouterr()
            assert run([*command, "--out", str(out), *words]) == 2
            err = capsys.readouterr().err
            assert remedy in err
            assert "Traceback" not in err
    assert not broken
    assert not (out / "model").exists()
    assert run([*command, "--out", str(out), "--resume", *sets("torchtitan.checkpoint_every=2")]) == 0
    assert lines(out, "metrics") == lines(whole, "metrics")
    assert lines(out, "receipts") == lines(whole, "receipts")
    assert "checkpoint_every = 2\n" in (out / "config.toml").read_text()


def trained(folder, whole, **changes):
    """The trainer of a finished run."""
    settings = Torchtitan(model=str(folder), dtype="float32", pack_length=64, **changes)
    made = Trainer(settings, Recipe(), 1.0, whole / "checkpoints")
    made.load(4)
    return made


def test_a_finished_run_holds_a_model_that_transformers_loads_with_the_trainers_log_probs(folder, whole):
    lengths, g = torch.tensor([30, 12, 21]), torch.Generator().manual_seed(0)
    tokens = torch.where(torch.arange(30) < lengths[:, None], torch.randint(2, 30, (3, 30), generator=g), 0)
    expected = Reference(whole / "model").score(tokens, 1.0)[0]
    batch = SimpleNamespace(tokens=tokens, lengths=lengths, kept=None)
    found = trained(folder, whole).score(batch)
    run = torch.arange(30) < lengths[:, None]
    torch.testing.assert_close(found.logp[run], expected[run], rtol=0, atol=2e-5)
    start = Trainer(Torchtitan(model=str(folder), dtype="float32", pack_length=64), Recipe(), 1.0, whole).score(batch)
    assert (start.logp - expected)[run].abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(whole / "model")("1+1=")["input_ids"] == sums.encode("1+1=")


def test_both_engines_load_a_finished_run(command, whole, tmp_path):
    out = tmp_path / "run"
    assert run([*command, *sets(f"torchtitan.model={whole / 'model'}", "schedule.steps=1"), "--out", str(out)]) == 0
    assert abs(lines(out, "metrics")[0]["kl"]) < 1e-5


def test_an_export_is_whole_or_not_there(folder, whole, tmp_path, monkeypatch):
    trainer, written = trained(folder, whole), export.write_weights

    def stop(error):
        def write(folder, weights):
            written(folder, [next(iter(weights))])
            raise error

        return write

    for error, named in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError("No space left on device"), DiskError)):
        with monkeypatch.context() as patch:
            patch.setattr(export, "write_weights", stop(error))
            with pytest.raises(named):
                export.export(trainer, tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [".model.partial"]
    export.export(trainer, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == {
        file.name: file.read_bytes() for file in (whole / "model").iterdir()
    }


def test_a_model_trained_in_bfloat16_is_exported_in_it(folder, whole, tmp_path):
    settings = Torchtitan(model=str(folder), dtype="bfloat16", pack_length=64)
    export.export(Trainer(settings, Recipe(), 1.0, whole), tmp_path)
    weights = load_file(tmp_path / "model/model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


def test_a_checkpoint_of_another_model_is_named(folder, whole):
    held = pair.EnginePair(trained(folder, whole), None, None, None)
    state = held.state() | {"shape": vars(held.trainer.shape) | {"num_hidden_layers": 6}}
    with pytest.raises(DataError, match=r"of a model with num_hidden_layers = 6, and .* has 4; put the model back"):
        held.load(state)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(command, whole, tmp_path, capsys, caplog):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shards = [out / f"checkpoints/torchtitan/step-{step}/__0_0.distcp" for step in (3, 4)]
    flip(shards[1])
    more = [*command, "--out", str(out), "--resume"]
    assert run(more) == 0
    assert f"{shards[1]} is damaged; resuming from step 3" in caplog.text
    capsys.readouterr()
    assert lines(out, "metrics") == lines(whole, "metrics")
    for shard in shards:
        flip(shard)
    assert run(more) == 2
    assert f"every checkpoint is damaged: {shards[1]} is damaged" in capsys.readouterr().err
    assert len(lines(out, "metrics")) == 4


WRONG = {
    "no model": (["torchtitan.model=/nowhere"], "cannot read /nowhere/config.json"),
    "model not set": (["torchtitan.model="], "torchtitan.model is not set; give a model folder"),
    "unknown key": (["vllm.temprature=1"], "did you mean 'temperature'?"),
    "top-p": (["vllm.top_p=1.5"], "vllm.top_p: must lie in (0, 1], got 1.5"),
    "not an optimizer of torchtitan": (["optimizer.kind=sgd"], "set optimizer.kind = adamw"),
    "rows too short": (["torchtitan.pack_length=32"], "do not fit into torchtitan.pack_length = 32"),
    "experts that do not divide": (["torchtitan.expert=3"], "torchtitan.expert = 3 must divide num_experts = 8"),
    "expert parallelism without ranks": (["torchtitan.expert=2"], "must divide the number of ranks, got 1; lower it"),
    "heads that do not divide": (
        ["torchtitan.tensor=4", "torchtitan.expert=4"],
        "torchtitan.tensor = 4 must divide num_key_value_heads = 2 of the model; lower it",
    ),
    "tensor parallelism alone": (["torchtitan.tensor=2"], "set expert to a multiple of tensor"),
    "rows that do not divide": (
        ["torchtitan.tensor=2", "torchtitan.expert=2", "torchtitan.pack_length=129"],
        "torchtitan.pack_length = 129 must be a multiple of torchtitan.tensor = 2",
    ),
    "shards without ranks": (["torchtitan.shard=4"], "must be the number of ranks, got 1 ranks; set shard = -1"),
    "compiled float32": (["torchtitan.compile=aot_eager"], "set dtype = bfloat16 or compile = none"),
    "compiled beside vLLM": (
        ["torchtitan.compile=aot_eager", "torchtitan.dtype=bfloat16"],
        "which runs without torch.compile there; set vllm.servers or compile = none",
    ),
    "compiled experts checkpointed": (
        [
            f"torchtitan.{one}"
            for one in ("compile=inductor", "dtype=bfloat16", "expert=2", "activation_checkpoint=full")
        ],
        "fails in torch 2.13; set activation_checkpoint = none or compile = none",
    ),
    "more chunks than tokens": (["torchtitan.loss_chunks=65"], "must be at most pack_length = 64; lower it"),
    "a critic": (["advantage.baseline=value", "about.scope=token"], "needs a critic, which torchtitan's models lack"),
    "an unknown key of the task": (["task.knd=sums"], "did you mean 'kind'?"),
    "a task without its files": (["task.kind=math"], "task.kind = math reads its problems from files; set task.files"),
    "a prompt that is too long": (["vllm.max_prompt=4"], "vllm.max_prompt is 4; raise it"),
    "a text that the tokenizer cannot say": (["task.kind=guess"], "has no token for 'G', which the task uses"),
    "a setting of the simulator": (["sim.vocab=3"], "'sim.vocab' is a setting of the simulator"),
    "a rejection that rollouts do not feed": (
        ["rejection.kind=kl", "rejection.high=0.1", "about.scope=group"],
        "reads more than the log-probs of sampled tokens",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_and_writes_nothing(name, command, capsys, tmp_path):
    changes, remedy = WRONG[name]
    capsys.readouterr()
    assert run([*command, *sets(*changes), "--out", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert remedy in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_engines_say_how_to_get_them(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "vllm" else object())
    assert run([*command, "--out", str(tmp_path / "run")]) == 2
    assert "need vllm, which is not installed; run `make engines`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("architectures", ["LlamaForCausalLM"], "holds LlamaForCausalLM"),
        ("tie_word_embeddings", True, "tie_word_embeddings is true, and lm_head.weight is not"),
        ("hidden_size", -1, "has hidden_size = -1, and it must be an integer of at least 1; correct it"),
        ("num_experts", None, "it lacks model.layers.0.mlp.experts.10.down_proj.weight and 1439 more"),
        ("rope_parameters", {"rope_type": "yarn"}, "has rope_parameters.rope_type = 'yarn'"),
        ("vocab_size", 4, "model.embed_tokens.weight is [64, 128] and not [4, 128]"),
        ("topk_method", "noaux_tc", "a bias that balances the experts"),
    ],
)
def test_a_model_that_does_not_fit_is_named(command, folder, tmp_path, capsys, key, value, remedy):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config = {name: v for name, v in (config | {key: value}).items() if v is not None or name != key}
    (copy / "config.json").write_text(json.dumps(config))
    assert run([*command, *sets(f"torchtitan.model={copy}"), "--out", str(tmp_path / "run")]) == 2
    assert remedy in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_of_another_model_are_named(command, folder, tmp_path, capsys):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | {"moe_intermediate_size": 64}
    (copy / "config.json").write_text(json.dumps(config))
    assert run([*command, *sets(f"torchtitan.model={copy}"), "--out", str(tmp_path / "run")]) == 2
    assert "does not hold the weights of its config.json" in capsys.readouterr().err


def test_parts_that_cannot_act_are_named():
    from firstorder.cli.api.compose import compose_engines

    made = compose_engines("minirl-r3-n1", ["task.kind=sums"])
    assert any("clip.kind = minirl" in line for line in made.inert())
