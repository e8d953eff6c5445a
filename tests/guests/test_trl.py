"""firstorder.core inside TRL's GRPOTrainer: its own default method is one of ours, to rounding."""

import pytest
import torch
import trl_grpo
from trl import GRPOConfig, GRPOTrainer

import firstorder as fo

CLOSE = 1e-6  # of the largest number compared: float32 sums in another order, which give 2e-7

# TRL's name of a loss, and the recipe that it is; its bounds are 0.2 on either side
METHODS = {
    "dapo": fo.recipe("dapo", {"clip.high": 0.2}),
    "grpo": fo.recipe("grpo", {"clip.high": 0.2}),
    "dr_grpo": fo.recipe("dr-grpo", {"clip.high": 0.2, "aggregation.constant": trl_grpo.LONGEST}),
}


class Both(trl_grpo.RecipeTrainer):
    """Trains by the recipe, and keeps what TRL's loss and the recipe's make of every micro-batch."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.seen, self.made = [], None
        method = self.method

        def kept(stats, whole):
            self.made = method(stats, whole)
            return self.made

        self.method = kept

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        theirs = GRPOTrainer.compute_loss(self, model, inputs)
        ours = super().compute_loss(model, inputs)
        acted = self.made.read()
        self.seen.append(
            {
                "gradients": (gradient(ours, model), gradient(theirs, model)),
                "values": (-float(self.made.weights.weight.sum()), float(theirs)),
                "tokens": float(inputs["completion_mask"].sum() / inputs["num_items_in_batch"]),
                "clipped": acted["clip_upper"] + acted["clip_lower"],
            }
        )
        return ours


def gradient(loss, model):
    """The gradient of a loss by all weights, in one row."""
    leaves = list(model.parameters())
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)]
    )


def run(recipe, out, kind=trl_grpo.RecipeTrainer, **changed):
    trainer = trl_grpo.trainer(recipe, str(out), kind, **changed)
    trainer.train()
    return trainer


def test_the_default_of_trl_is_the_one_that_is_compared():
    default = GRPOConfig(output_dir="unused", use_cpu=True, bf16=False)
    assert (default.loss_type, default.epsilon, default.epsilon_high) == ("dapo", 0.2, None)
    assert (default.scale_rewards, default.beta, default.delta) == ("group", 0.0, None)
    assert default.importance_sampling_level == "token"


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_those_of_trl(tmp_path, name):
    seen = run(METHODS[name], tmp_path, Both, loss_type=name, learning_rate=1e-2).seen
    scale = max(float(theirs.abs().max()) for _, theirs in (each["gradients"] for each in seen))
    assert scale > 0.01
    for ours, theirs in (each["gradients"] for each in seen):
        assert float((ours - theirs).abs().max()) <= CLOSE * scale


def test_gradients_are_those_of_trl_where_it_clips(tmp_path):
    seen = run(METHODS["dapo"], tmp_path, Both, learning_rate=3e-2).seen
    assert max(each["clipped"] for each in seen) > 0.02
    scale = max(float(each["gradients"][1].abs().max()) for each in seen)
    assert all(float((ours - theirs).abs().max()) <= CLOSE * scale for ours, theirs in (e["gradients"] for e in seen))


def test_the_value_of_trls_loss_is_minus_the_sum_of_the_weights_where_nothing_is_clipped(tmp_path):
    trainer = run(METHODS["dapo"], tmp_path, Both)
    # the weights are those of a micro-batch on its own, divided by its mean length; TRL divides by all tokens
    parts, size = trainer.args.steps_per_generation, trainer.args.per_device_train_batch_size
    free = [each for each in trainer.seen if each["clipped"] == 0]
    assert len(free) >= 4
    for each in free:
        ours, theirs = each["values"]
        share = each["tokens"] * parts / trainer.args.gradient_accumulation_steps
        assert ours * share / size == pytest.approx(theirs, abs=CLOSE)


def test_a_run_ends_with_the_weights_of_a_run_of_trl(tmp_path):
    ends = [run(METHODS["dapo"], tmp_path, kind).model for kind in (trl_grpo.RecipeTrainer, GRPOTrainer)]
    ours, theirs, start = (
        torch.cat([x.detach().flatten() for x in model.parameters()]) for model in (*ends, trl_grpo.model())
    )
    moved = float((ours - start).abs().max())
    assert moved > 1e-3
    assert float((ours - theirs).abs().max()) <= 1e-3 * moved  # Adam divides by small moments, which enlarges rounding


@pytest.mark.parametrize("name", ["minirl", "tis", "grpo", "gspo"])
def test_metrics_and_receipts_are_logged_beside_those_of_trl(tmp_path, name):
    *rows, _ = run(fo.recipe(name), tmp_path).state.log_history
    assert len(rows) == 4
    for row in rows:
        assert row["firstorder/loss"] == pytest.approx(row["loss"], abs=1e-6)
        assert row["firstorder/k3_kl"] > 0  # sampled in bfloat16, trained in float32
    sampler = name in ("minirl", "tis")  # importance sampling against what the sampler says
    first = rows[0]
    assert (first["firstorder/ratio_not_one"] + first["firstorder/corrected"] > 0.9) == sampler
    assert "reward" in first


def test_the_example_runs_as_it_is(capsys):
    assert len(trl_grpo.main("grpo")) == 5
