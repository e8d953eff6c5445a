"""`firstorder probe` without engines: what it refuses, what it prints and keeps."""

import json
import shutil

import pytest

from firstorder.backends import checks, extras, parity, probe
from firstorder.backends.folder import Shape, write_config
from firstorder.cli.api.probe import compose_points
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError

SHAPE = Shape(
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1),
    **dict.fromkeys(("vocab_size", "hidden_size", "head_dim", "moe_intermediate_size", "num_experts"), 32),
    num_experts_per_tok=2,
    rope_theta=1e4,
    max_position_embeddings=256,
)
DISTANCE = {"mean_abs_d": 0.01, "k3_kl": 0.002, "ratio_tail_2": 0.0, "one_minus_ess": 0.03}
FOUND = {
    "tokens": 100,
    "reward": 0.25,
    "tokens_per_second": 1234.5,
    "emulated": True,
    "routes": {"route/flip_rate": 0.0123, "route/tokens_flipped": 0.05},
    "live": DISTANCE,
    "R3": DISTANCE | {"k3_kl": 0.001},
}


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    write_config(folder, SHAPE, 1, 0)
    monkeypatch.setattr(extras, "find_spec", lambda name: object())
    monkeypatch.setattr(checks, "open_tasks", lambda *given: None)  # it reads the tokenizer, with the engines' packages
    monkeypatch.setattr(checks, "open_weights", lambda *given: None)  # there are none
    return str(folder)


@pytest.fixture
def measured(monkeypatch):
    """Makes the engines find what a list says, an exception among it being raised."""

    def given(*found):
        def measure_all(points):
            for each, _ in zip(found, points, strict=False):
                if isinstance(each, type):
                    raise each
                yield each

        monkeypatch.setattr(probe, "measure_all", measure_all)

    return given


WRONG = {
    "an unknown key": (["--grid", "vllm.dtyp=float32"], "did you mean 'dtype'?"),
    "an unknown value": (["--grid", "vllm.dtype=float32,float8"], "point (vllm.dtype = float8): vllm.dtype: input"),
    "a key of the recipe": (
        ["--grid", "clip.high=0.2"],
        "has settings of [vllm], [torchtitan] and [task], got 'clip.high'",
    ),
    "a whole section": (["--set", "vllm=3"], "has settings of [vllm], [torchtitan] and [task], got 'vllm'"),
    "an axis without values": (["--grid", "vllm.dtype="], "has no values"),
    "a value twice": (["--grid", "vllm.dtype=float32,float32"], "holds 'float32' twice"),
    "set and an axis": (["--set", "vllm.dtype=float32", "--grid", "vllm.dtype=float16"], "both set and an axis"),
    "another model": (["--set", "torchtitan.model=x"], "is the argument MODEL"),
    "no folder for the result": (["--json", "nowhere/a.json"], "create it first"),
    "fp8 in float32": (["--set", "vllm.quantization=fp8_per_block", "--set", "vllm.dtype=float32"], "needs vllm.dtype"),
    "int8": (["--set", "vllm.quantization=experts_int8"], "vllm.quantization: input should be 'none'"),
    "batch invariance on a CPU": (["--grid", "vllm.batch_invariant=true"], "batch_invariant = true needs a GPU"),
    "chunks on a CPU": (["--set", "vllm.chunked_prefill=true"], "chunked_prefill = true needs a GPU"),
    "chunks that do not fit": (
        ["--set", "vllm.chunked_prefill=false", "--set", "vllm.max_batched_tokens=100"],
        "must hold vllm.max_prompt + vllm.max_tokens = 128 where vllm.chunked_prefill = false, got 100; raise it",
    ),
    "fewer tokens than responses": (
        ["--set", "vllm.max_batched_tokens=200"],
        "must be at least vllm.max_sequences = 256",
    ),
    "rows too short": (["--set", "torchtitan.pack_length=32"], "do not fit into torchtitan.pack_length = 32"),
    "no prompts": (["--prompts", "0"], "--prompts"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line(name, model, capsys):
    arguments, remedy = WRONG[name]
    assert run(["probe", model, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert remedy in err
    assert err.count("\n") == 1


def test_no_model_and_no_engines_are_named(model, capsys, monkeypatch):
    assert run(["probe", "nowhere"]) == 2
    assert "cannot read nowhere/config.json" in capsys.readouterr().err
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert run(["probe", model]) == 2
    assert "need torchtitan, which is not installed; run `make engines`" in capsys.readouterr().err


def test_points_stand_in_a_table_and_in_the_json(model, measured, capsys, tmp_path):
    measured(FOUND, FOUND | {"emulated": False, "reward": 0.5})
    grid = ["--grid", "vllm.quantization=fp8_per_block,none", "--json", "out.json", "--set", "vllm.max_prompt=40"]
    assert run(["probe", model, *grid, "--prompts", "3"]) == 0
    first, second = capsys.readouterr().out.strip().splitlines()[-2:]
    assert first.split("|")[1:5] == [" fp8_per_block (emulated) ", " 1.23% ", "          5.00% ", "             0.01 "]
    assert [cell.strip() for cell in second.split("|")[-3:]] == ["0.500", "1,234", ""]
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["schema"] == "firstorder.probe/1"
    assert document["grid"] == {"vllm.quantization": ["fp8_per_block", "none"]}
    assert [row["point"]["vllm.quantization"] for row in document["result"]] == ["fp8_per_block", "none"]
    assert document["result"][0]["R3"]["k3_kl"] == 0.001
    assert (document["prompts"], document["responses"]) == (3, 4)


def test_what_was_finished_before_an_interruption_is_kept(model, measured, capsys, tmp_path):
    measured(FOUND, KeyboardInterrupt)
    assert run(["probe", model, "--grid", "vllm.max_sequences=8,9,10", "--json", "out.json"]) == 130
    out = capsys.readouterr().out
    assert "fp8 weights emulated" in out
    assert "| 8 " in out
    assert [row["point"] for row in json.loads((tmp_path / "out.json").read_text())["result"]] == [
        {"vllm.max_sequences": 8}
    ]


def test_a_point_that_vllm_refuses_is_named_and_the_others_are_measured(model, measured, capsys):
    measured(FOUND, ConfigError("vLLM does not start"), FOUND)
    assert run(["probe", model, "--grid", "vllm.max_sequences=8,9,10", "--json", "-"]) == 2
    out, err = capsys.readouterr()
    assert "point (vllm.max_sequences = 9): vLLM does not start" in err
    assert [row.get("error") for row in json.loads(out)["result"]] == [None, "vLLM does not start", None]


def test_points_of_other_variables_want_another_process(model, monkeypatch):
    monkeypatch.setattr(probe, "ON_CPU", True)
    settings = {"titan": parity.Torchtitan(model=model), "vllm": parity.Vllm(), "task": parity.TaskSettings()}
    point = parity.Point(**settings, prompts=1, responses=1)
    process = object.__new__(probe.Process)
    process._variables, process._asked = probe.environment(point.vllm), 1
    assert process.fits(point)
    invariant = point.vllm.model_copy(update={"batch_invariant": True})
    assert not process.fits(parity.Point(titan=point.titan, vllm=invariant, task=point.task, prompts=1, responses=1))
    monkeypatch.setattr(probe, "ON_CPU", False)
    assert not process.fits(point)


def test_the_model_folder_is_left_alone(model, measured, tmp_path):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    measured(FOUND)
    assert run(["probe", model]) == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    shutil.rmtree(model)


def test_one_response_a_prompt_is_a_probe_too(model, measured, capsys):
    measured(FOUND)
    assert run(["probe", model, "--set", "task.kind=sums", "--prompts", "4", "--responses", "1"]) == 0
    assert "1 responses to each" in capsys.readouterr().out
    ((_, point),) = compose_points(model, ["task.kind=sums"], {}, 4, 1)
    assert point.recipe.schedule.group_size == 1
    point.check()
