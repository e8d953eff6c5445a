"""What vLLM is asked for, in process and as a server: its own parser and matching of names say what it means."""

import sys

import pytest

from firstorder.backends.vllm import arguments, serve
from firstorder.backends.vllm.config import Vllm


@pytest.fixture(scope="module", autouse=True)
def _variables():
    arguments.prepare(Vllm())  # before vLLM is imported


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_server_is_asked_for_what_the_process_is(on_cpu, monkeypatch):
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from firstorder.backends.vllm import fp8

    monkeypatch.setattr(arguments, "ON_CPU", on_cpu)
    settings = Vllm(quantization="fp8_per_block", prefix_caching=False, max_batched_tokens=512, kv_cache_dtype="fp8")
    words = serve.flags("folder", "127.0.0.1", 1, settings)
    own = [word for word in words if word not in ("--host", "127.0.0.1", "--port", "1")]
    parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(own)
    asked = arguments.arguments(settings, "folder")
    if not on_cpu:
        assert parsed.quantization_config.ignore == asked.pop("quantization_config")["ignore"] == ["*mlp.gate"]
    for name, value in asked.items():
        assert getattr(parsed, name) == value, name
    assert parsed.quantization == (fp8.PerBlock.name if on_cpu else "fp8_per_block")
    assert parsed.enable_chunked_prefill is not on_cpu


def test_vllms_own_quantisation_leaves_routers_alone():
    from vllm.config.quantization import resolve_quantization_config
    from vllm.model_executor.layers.quantization.compressed_tensors.utils import should_ignore_layer

    for scheme in arguments.EMULATED:
        args = resolve_quantization_config(scheme, {"ignore": arguments.ROUTERS})
        assert args.linear is not None
        assert args.moe is not None
        ignored = {
            name: should_ignore_layer(f"model.layers.3.{name}", ignore=args.ignore, fused_mapping={}, use_fnmatch=True)
            for name in ("mlp.gate", "mlp.experts", "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj")
        }
        assert [name for name, skipped in ignored.items() if skipped] == ["mlp.gate"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("dtyp=float32", "did you mean 'dtype'?"),
        ("batch_invariant=true", "needs a GPU"),
        ("chunked_prefill=true", "needs a GPU"),
        ("dtype=float32", "cannot read folder/config.json"),
        ("quantization=experts_int8", "vllm.quantization: input should be"),
    ],
)
def test_a_mistake_is_one_line(assignment, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve", "folder", "--set", assignment])
    with pytest.raises(SystemExit) as raised:
        serve.main()
    err = capsys.readouterr().err
    assert raised.value.code == 2
    assert message in err
    assert err.count("\n") == 1


def test_variables_that_come_too_late_are_named(monkeypatch):
    monkeypatch.setattr(arguments, "ON_CPU", False)
    import vllm  # noqa: F401

    with pytest.raises(
        arguments.ConfigError, match="is read when vLLM is imported, which has happened; start another process"
    ):
        arguments.prepare(Vllm(batch_invariant=True))
