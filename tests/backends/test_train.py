"""Whole runs through the command line: cold start, training, export, bad input."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from reference import Reference
from safetensors.torch import load_file
from small_runs import SMALL, lines, sets, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from firstorder.backends import export, extras
from firstorder.backends.tasks import sums
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.cli.main import run
from firstorder.core.errors import DiskError
from firstorder.core.formats.chunk import chunks
from firstorder.core.formats.registry import open_dump
from firstorder.core.method.recipe import Recipe
from firstorder.core.routing import flips
from firstorder.core.training.diagnostics import diagnose


def test_a_cold_start_is_a_folder_that_transformers_loads(solver):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(solver), AutoTokenizer.from_pretrained(solver)
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


def test_a_finished_run_holds_a_model_that_transformers_loads_with_the_trainers_log_probs(solver, whole):
    lengths, g = torch.tensor([30, 12, 21]), torch.Generator().manual_seed(0)
    tokens = torch.where(torch.arange(30) < lengths[:, None], torch.randint(2, 30, (3, 30), generator=g), 0)
    expected = Reference(whole / "model").score(tokens, 1.0)[0]
    batch = SimpleNamespace(tokens=tokens, lengths=lengths, kept=None)
    found = trained(solver, whole).score(batch)
    run = torch.arange(30) < lengths[:, None]
    torch.testing.assert_close(found.logp[run], expected[run], rtol=0, atol=2e-5)
    start = Trainer(Torchtitan(model=str(solver), dtype="float32", pack_length=64), Recipe(), 1.0, whole).score(batch)
    assert (start.logp - expected)[run].abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(whole / "model")("1+1=")["input_ids"] == sums.encode("1+1=")


def test_both_engines_load_a_finished_run(command, whole, tmp_path):
    out = tmp_path / "run"
    assert run([*command, *sets(f"torchtitan.model={whole / 'model'}", "schedule.steps=1"), "--out", str(out)]) == 0
    assert abs(lines(out, "metrics")[0]["kl"]) < 1e-5


def test_an_export_is_whole_or_not_there(solver, whole, tmp_path, monkeypatch):
    trainer, written = trained(solver, whole), export.write_weights

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


def test_a_model_trained_in_bfloat16_is_exported_in_it(solver, whole, tmp_path):
    settings = Torchtitan(model=str(solver), dtype="bfloat16", pack_length=64)
    export.export(Trainer(settings, Recipe(), 1.0, whole), tmp_path)
    weights = load_file(tmp_path / "model/model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


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
def test_a_model_that_does_not_fit_is_named(command, solver, tmp_path, capsys, key, value, remedy):
    copy = tmp_path / "model"
    shutil.copytree(solver, copy)
    config = json.loads((copy / "config.json").read_text())
    config = {name: v for name, v in (config | {key: value}).items() if v is not None or name != key}
    (copy / "config.json").write_text(json.dumps(config))
    assert run([*command, *sets(f"torchtitan.model={copy}"), "--out", str(tmp_path / "run")]) == 2
    assert remedy in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_of_another_model_are_named(command, solver, tmp_path, capsys):
    copy = tmp_path / "model"
    shutil.copytree(solver, copy)
    config = json.loads((copy / "config.json").read_text()) | {"moe_intermediate_size": 64}
    (copy / "config.json").write_text(json.dumps(config))
    assert run([*command, *sets(f"torchtitan.model={copy}"), "--out", str(tmp_path / "run")]) == 2
    assert "does not hold the weights of its config.json" in capsys.readouterr().err


def test_parts_that_cannot_act_are_named():
    from firstorder.cli.api.compose import compose_engines

    made = compose_engines("minirl-r3-n1", ["task.kind=sums"])
    assert any("clip.kind = minirl" in line for line in made.inert())
