"""Model folders read whole or refused: what each key means is what transformers makes of the same folder."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from firstorder.backends import architecture
from firstorder.backends.coldstart import initial_weights
from firstorder.backends.folder import Shape, read_shape, write_config, write_weights
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.backends.weights import expected, open_weights
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Optimizer, Recipe
from firstorder.core.training.batch import RolloutBatch

CONFIG = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "norm_topk_prob": True,
}


def save(folder, joined=False, **changes):
    """A folder as transformers saves it, joined experts or not."""
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**CONFIG | changes)).float()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.mul_(3.0)
        for name, w in model.named_parameters():
            if "norm" in name:
                w.add_(0.3 * torch.randn(w.shape))
        model.model.embed_tokens.weight.mul_(0.1)  # so that an epsilon is seen
    model.save_pretrained(folder, save_original_format=not joined)
    return folder


def rewrite(folder, **changes):
    """Change keys of a config.json; None removes one."""
    file = folder / "config.json"
    table = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))
    return folder


def some_tokens():
    return torch.randint(0, 32, (4, 24), generator=torch.Generator().manual_seed(1))


def transformers_says(folder):
    """log p of tokens given those before."""
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = some_tokens()
    with torch.no_grad():
        every = model(tokens, use_cache=False).logits.double().log_softmax(-1)
    return every[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


def trainer_says(folder, out):
    made = Trainer(Torchtitan(model=str(folder), dtype="float32", pack_length=32), Recipe(), 1.0, out)
    tokens = some_tokens()
    batch = RolloutBatch(
        tokens=tokens,
        mask=torch.ones_like(tokens, dtype=torch.bool).index_fill(1, torch.tensor([0]), False),
        lengths=torch.full((4,), 24),
        logp_mu=torch.zeros(tokens.shape, dtype=torch.float64),
        rewards=torch.zeros(4, dtype=torch.float64),
        groups=torch.arange(4),
        routes=torch.full((*tokens.shape, 2, 2), -1, dtype=torch.int16),
    )
    return made.score(batch).logp[:, 1:]


def apart(one, other):
    return float((one - other).abs().mean())


HONOURED = {
    "rms_norm_eps": {"rms_norm_eps": 1e-3},
    "rope_theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "norm_topk_prob": {"norm_topk_prob": False},
    "head_dim": {"head_dim": 16},
    "tie_word_embeddings": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("key", HONOURED)
@pytest.mark.parametrize("joined", [False, True])
def test_a_key_means_what_transformers_makes_of_it(key, joined, tmp_path):
    folder = save(tmp_path / "model", joined, **HONOURED[key])
    wanted = transformers_says(folder)
    assert apart(trainer_says(folder, tmp_path), wanted) < 1e-5
    assert apart(transformers_says(save(tmp_path / "plain")), wanted) > 1e-3  # so it is a key that matters


def test_an_absent_key_means_what_it_means_to_transformers():
    config = Qwen3MoeConfig()
    table = architecture.SIZES | architecture.SWITCHES | architecture.NUMBERS
    theirs = {name: getattr(config, name) for name in table if name != "rope_theta"}
    assert theirs | {"rope_theta": config.rope_parameters["rope_theta"]} == table
    for name, values in architecture.ONLY.items():
        assert getattr(config, name, None) in values, name
    assert not hasattr(config, "head_dim")
    assert all(getattr(config, alias) == table[name] for alias, name in architecture.ALIASES.items())
    bare = architecture.meaning({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}, "config.json")
    assert Shape(**bare) == Shape(**table, head_dim=config.hidden_size // config.num_attention_heads)


def test_what_transformers_writes_is_understood_whole(tmp_path):
    written = json.loads(Qwen3MoeConfig(**CONFIG).to_json_string(use_diff=False))
    written |= {"architectures": ["Qwen3MoeForCausalLM"]}
    assert Shape(**architecture.meaning(written, "config.json")).num_experts == 4


def test_gradients_of_a_head_that_is_the_embedding_are_those_of_transformers(tmp_path, same):
    folder = save(tmp_path / "model", tie_word_embeddings=True)
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens = some_tokens()
    model(tokens, labels=tokens).loss.backward()
    recipe = Recipe(optimizer=Optimizer(lr=1e-9, max_grad_norm=float("inf")))
    made = Trainer(Torchtitan(model=str(folder), dtype="float32", pack_length=32), recipe, 1.0, tmp_path)
    mask = torch.ones_like(tokens, dtype=torch.bool).index_fill(1, torch.tensor([0]), False)
    made.supervise(tokens, torch.full((4,), 24), mask)
    same(made.model.lm_head.weight.grad.full_tensor(), model.lm_head.weight.grad, 1e-4)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return save(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "copy")


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
REFUSED = {
    "yarn": ({"rope_scaling": YARN, "rope_parameters": None}, "rope_scaling.'factor' = 4.0: rotary frequencies that"),
    "legacy linear": (
        {"rope_scaling": {"type": "linear"}, "rope_parameters": None},
        "rope_scaling.type = 'linear', and only 'default' is supported",
    ),
    "new yarn": ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type = 'yarn', and only 'default'"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5, and only 1.0"),
    "two bases": ({"rope_theta": 7.0}, "more than one rope_theta: 7.0, 10000.0; remove all but one"),
    "two tables": ({"rope_scaling": {"rope_type": "default"}}, "has both rope_parameters and rope_scaling"),
    "no table": ({"rope_parameters": 3}, "rope_parameters = 3, and it must be a table"),
    "gelu": ({"hidden_act": "gelu"}, "hidden_act = 'gelu', and only 'silu' is supported"),
    "bias": ({"attention_bias": True}, "attention_bias = True, and only False"),
    "dropout": ({"attention_dropout": 0.1}, "attention_dropout = 0.1, and only 0.0"),
    "dense layers": ({"decoder_sparse_step": 2}, "decoder_sparse_step = 2, and only 1"),
    "named dense layers": ({"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\], and only \[\]"),
    "window": ({"use_sliding_window": True}, "use_sliding_window = True, and only False"),
    "shared expert": ({"shared_expert_intermediate_size": 64}, "'shared_expert_intermediate_size' = 64, a key that is"),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "'quantization_config' = .*, a key that is not"),
    "another type": ({"model_type": "qwen2_moe"}, "model_type = 'qwen2_moe', and only 'qwen3_moe'"),
    "negative": ({"hidden_size": -1}, "hidden_size = -1, and it must be an integer of at least 1"),
    "text": ({"vocab_size": "32"}, "vocab_size = '32', and it must be an integer"),
    "fraction": ({"num_hidden_layers": 1.5}, "num_hidden_layers = 1.5, and it must be an integer"),
    "bool": ({"num_key_value_heads": True}, "num_key_value_heads = True, and it must be an integer"),
    "odd width": ({"head_dim": 33}, "head_dim = 33, and it must be an even number"),
    "heads": (
        {"num_attention_heads": 3},
        "no head_dim, and hidden_size = 64 is not a multiple of num_attention_heads = 3",
    ),
    "grouped heads": ({"num_key_value_heads": 4}, "num_attention_heads = 2, not a multiple of num_key_value_heads = 4"),
    "top-k": ({"num_experts_per_tok": 5}, "num_experts_per_tok = 5 above num_experts = 4"),
    "two counts": ({"num_experts": 8}, "num_experts = 8 and num_local_experts = 4, which mean the same; remove one"),
    "eps": ({"rms_norm_eps": -1e-6}, "rms_norm_eps = -1e-06, and it must be a positive number"),
    "eps text": ({"rms_norm_eps": "1e-6"}, "rms_norm_eps = '1e-6', and it must be a positive number"),
    "nan": ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan, and it must be a positive number"),
    "switch": ({"norm_topk_prob": "no"}, "norm_topk_prob = 'no', and it must be true or false"),
    "no type": ({"model_type": None}, "lacks model_type, without which vLLM cannot load it"),
    "no architecture": ({"architectures": None}, "holds no architecture, and only Qwen3MoeForCausalLM is supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_is_not_honoured_is_refused_by_name(name, copy):
    changes, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message) as raised:
        read_shape(rewrite(copy, **changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[1]", "{", "\xff", "[" * 100_000, ""])
def test_a_config_that_is_no_table_is_one_line(text, copy):
    (copy / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"cannot read .*config.json: "):
        read_shape(copy)


def test_the_names_and_sizes_are_those_of_the_weights_that_are_made_here(shape):
    assert {name: tuple(w.shape) for name, w in initial_weights(shape, 0).items()} == expected(shape)


def replace(folder, change):
    """Save the tensors of a folder again, changed."""
    held = load_file(folder / "model.safetensors")
    save_file(change(held) or held, folder / "model.safetensors", metadata={"format": "pt"})


def shards(folder, index=True):
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_weights(folder, held.items(), limit=60_000)
    if not index:
        (folder / "model.safetensors.index.json").unlink()


def cut(folder, by):
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-by])


def reindex(folder, change):
    file = folder / "model.safetensors.index.json"
    table = json.loads(file.read_text())
    change(table["weight_map"])
    file.write_text(json.dumps(table))


NORM, GATE = "model.norm.weight", "model.layers.1.mlp.gate.weight"
DAMAGE = {
    "missing": (
        lambda f: replace(f, lambda w: {name: each for name, each in w.items() if name != NORM}),
        f"it lacks {NORM}; give a complete",
    ),
    "extra": (lambda f: replace(f, lambda w: w | {"extra.weight": torch.ones(2)}), "it also holds extra.weight"),
    "a bias": (
        lambda f: replace(f, lambda w: w | {"model.layers.0.self_attn.o_proj.bias": torch.ones(64)}),
        "also holds model.layers.0.self_attn.o_proj.bias",
    ),
    "another layer": (
        lambda f: rewrite(f, num_hidden_layers=1),
        "also holds model.layers.1.input_layernorm.weight and",
    ),
    "another shape": (lambda f: replace(f, lambda w: w | {NORM: torch.ones(63)}), rf"{NORM} is \[63\] and not \[64\]"),
    "integers": (
        lambda f: replace(f, lambda w: w | {GATE: w[GATE].to(torch.int8)}),
        f"{GATE} is I8 and none of F64, F32, F16, BF16",
    ),
    "float8": (
        lambda f: replace(f, lambda w: w | {GATE: w[GATE].to(torch.float8_e4m3fn)}),
        f"{GATE} is F8_E4M3 and none of",
    ),
    "no file": (lambda f: (f / "model.safetensors").unlink(), "there is no .*.safetensors"),
    "beside": (
        lambda f: (f / "pytorch_model.bin").write_bytes(b"x"),
        "holds pytorch_model.bin, which would not be read",
    ),
    "gguf": (lambda f: (f / "model.gguf").write_bytes(b"x"), "holds model.gguf, which would not be read"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json, which would not be read"),
    "twice": (
        lambda f: shutil.copy(f / "model.safetensors", f / "more.safetensors"),
        "is in model.safetensors and in more",
    ),
    "truncated": (lambda f: cut(f, 10), r"has \d+ bytes, and its header promises \d+; copy it again"),
    "a truncated shard": (lambda f: (shards(f), cut(f, 10)), r"has \d+ bytes, and its header promises"),
    "a lost shard": (lambda f: (shards(f), sorted(f.glob("*.safetensors"))[1].unlink()), "and it is in nowhere"),
    "an index of more": (
        lambda f: (shards(f), reindex(f, lambda place: place.update(ghost="model.safetensors"))),
        "has ghost in model.safetensors, and it is in nowhere",
    ),
    "an index of less": (lambda f: (shards(f), reindex(f, lambda place: place.pop(NORM))), f"has {NORM} in nowhere"),
    "an index elsewhere": (
        lambda f: (shards(f), reindex(f, lambda place: place.update({NORM: place[GATE]}))),
        f"has {NORM} in model-.*, and it is in model-",
    ),
    "no safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"PK" * 50), "it is no safetensors file"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "it is no safetensors file"),
    "untied": (
        lambda f: rewrite(f, tie_word_embeddings=True),
        "tie_word_embeddings is true, and lm_head.weight is not model.embed_tokens.weight",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_weights_that_are_not_the_models_are_refused(name, copy):
    damage, message = DAMAGE[name]
    damage(copy)
    with pytest.raises(ConfigError, match=message) as raised:
        open_weights(copy, read_shape(copy))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_read_with_an_index_and_without(index, copy, sound, tmp_path):
    shards(copy, index)
    (copy / "training_args.bin").write_bytes(b"x")  # which Hugging Face's trainer leaves
    assert len(list(copy.glob("*.safetensors"))) > 1
    assert torch.equal(trainer_says(copy, tmp_path), trainer_says(sound, tmp_path))


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_found(joined, value, tmp_path):
    folder = save(tmp_path / "model", joined)
    name = f"model.layers.1.mlp.experts.{'gate_up_proj' if joined else '2.up_proj.weight'}"
    replace(folder, lambda w: w[name].view(-1)[-1].fill_(value) and None)
    with pytest.raises(
        ConfigError, match=r"holds model.layers.1.mlp.experts.\d.up_proj.weight with values that are not"
    ):
        Trainer(Torchtitan(model=str(folder), dtype="float32"), Recipe(), 1.0, tmp_path)


def test_half_precision_is_read(sound, copy, tmp_path):
    replace(copy, lambda w: {name: each.bfloat16() for name, each in w.items()})
    assert 0.0 < apart(trainer_says(copy, tmp_path), trainer_says(sound, tmp_path)) < 0.1
    assert apart(trainer_says(copy, tmp_path), transformers_says(copy)) < 1e-5


def test_a_folder_that_is_written_is_read_back(shape, tmp_path):
    changed = dataclasses.replace(shape, rms_norm_eps=1e-5, norm_topk_prob=False, tie_word_embeddings=True)
    write_config(tmp_path, changed, 1, 0)
    write_weights(tmp_path, initial_weights(changed, 0).items())
    assert read_shape(tmp_path) == changed
    open_weights(tmp_path, changed)
