"""A recipe of firstorder inside TRL's GRPOTrainer: a small MoE learns to add on a CPU, sampled in bfloat16.

    pip install firstorder trl
    python trl_grpo.py minirl

TRL samples, scores the rewards, and steps the optimiser. `compute_loss` is the recipe's; metrics and receipts go where
TRL logs. The tokens are sampled in bfloat16 and trained in float32, so that the two engines differ as they do at scale.

Shapes: B responses, P prompt tokens, T response tokens, V tokens of the vocabulary.
"""

import sys
import tempfile
from dataclasses import replace

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import GRPOConfig, GRPOTrainer

import firstorder as fo
from firstorder.core.method.stats import UnreadStats
from firstorder.core.training.inside import Method, Record, Whole, together

SYMBOLS = [*"0123456789+=", "<eos>", "<pad>"]
LONGEST = 6  # response tokens


class RecipeTrainer(GRPOTrainer):
    """GRPOTrainer with the loss of a recipe.

    Args:
        recipe: its weight is used. Its advantage must be the group mean, which TRL takes, with or without std.
        given: as GRPOTrainer.
    """

    def __init__(self, *given, recipe: fo.Recipe, **named):
        super().__init__(*given, **named)
        self.method, self.records = Method(recipe), []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a micro-batch: those of all micro-batches and ranks add up to that of the batch."""
        mask = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            mask = mask & inputs["tool_mask"].bool()
        logp = log_probs(model, inputs, self.temperature)
        old = inputs.get("old_per_token_logps", logp.detach())  # TRL leaves it out where θ has not moved
        mu = inputs.get("sampling_per_token_logps", old)
        stats = UnreadStats(
            logp_theta=logp,
            logp_old=old,
            logp_mu=mu.where(~mu.isnan(), old),  # what the engine gave no log-prob is not corrected for
            mask=mask,
            advantage=inputs["advantages"],
        )
        parts = self.current_gradient_accumulation_steps
        ranks = self.accelerator.num_processes
        tokens = inputs["num_items_in_batch"] * parts / self.args.steps_per_generation  # TRL counts a generation's
        out = self.method(stats, Whole(responses=len(mask) * parts * ranks, tokens=tokens))
        self.records.append(out.record)
        return out.loss * ranks  # whose gradients are averaged

    def log(self, logs, start_time=None):
        """Metrics and receipts beside TRL's own: the host waits for the device here, and nowhere else."""
        records: list[Record] = self.records
        if records:
            record, steps = together(records), len(records) / self.current_gradient_accumulation_steps
            sums, loss = (self.accelerator.reduce(x, reduction="sum") for x in (record.sums, record.loss))
            numbers = replace(record, sums=sums, loss=loss / steps).read()
            logs = logs | {f"firstorder/{name}": value for name, value in numbers.items()}
            records.clear()
        super().log(logs, start_time)


def log_probs(model, inputs, temperature: float) -> torch.Tensor:
    """log π_θ of the response tokens, `[B, T]` float32, at the temperature they are sampled with."""
    tokens = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logits = model(input_ids=tokens, attention_mask=attended).logits
    before = inputs["prompt_ids"].shape[1] - 1  # the logits of token t are those of position t - 1
    return chosen(logits[:, before:-1], inputs["completion_ids"], temperature)


def chosen(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax of `[B, T, V]` at the tokens `[B, T]`."""
    return (logits.float() / temperature).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


@torch.no_grad()
def sample(prompts: list[str], trainer: GRPOTrainer) -> dict[str, list]:
    """A response to each prompt and its log-probs, in bfloat16: what stands for the inference engine."""
    tokenizer, model = trainer.processing_class, trainer.model
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]  # of one length
    tokens, logp = torch.tensor(prompt_ids), []
    for _ in range(LONGEST):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=tokens).logits[:, -1:]
        probabilities = (logits.float() / trainer.temperature).softmax(-1)[:, 0]
        tokens = torch.cat([tokens, torch.multinomial(probabilities, 1)], dim=1)
        logp.append(chosen(logits, tokens[:, -1:], trainer.temperature))
    responses, logps = tokens[:, -LONGEST:].tolist(), torch.cat(logp, dim=1).tolist()
    ends = [row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else LONGEST for row in responses]
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": [row[:end] for row, end in zip(responses, ends, strict=True)],
        "logprobs": [row[:end] for row, end in zip(logps, ends, strict=True)],
    }


def rewards(completions: list[str], answer: list[int], **_) -> list[float]:
    """How close the first digit is to the answer, from 0 to 1."""
    first = [completion[:1] for completion in completions]
    return [1 - abs(int(d) - right) / 9 if d.isdigit() else 0.0 for d, right in zip(first, answer, strict=True)]


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a character."""
    made = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(SYMBOLS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>", padding_side="left")


def model(seed: int = 0) -> Qwen3MoeForCausalLM:
    """A MoE of 2 layers with 4 experts, untrained."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32, "head_dim": 16}
    config = Qwen3MoeConfig(
        vocab_size=len(SYMBOLS),
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        eos_token_id=SYMBOLS.index("<eos>"),
        pad_token_id=SYMBOLS.index("<pad>"),
        **sizes,
    )
    return Qwen3MoeForCausalLM(config)


def sums(count: int = 64) -> Dataset:
    """Sums of two digits, of which the last digit is asked."""
    pairs = [(i % 10, (7 * i) % 10) for i in range(count)]
    return Dataset.from_dict({"prompt": [f"{a}+{b}=" for a, b in pairs], "answer": [(a + b) % 10 for a, b in pairs]})


def settings(recipe: fo.Recipe, out: str, **changed) -> GRPOConfig:
    """Four steps of 4 prompts x 4 responses, two updates a generation of two micro-batches each."""
    fixed = {
        "output_dir": out,
        "max_steps": 4,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "max_completion_length": LONGEST,
        "learning_rate": 1e-3,
        "scale_rewards": "group" if recipe.advantage.std else "none",
        "router_aux_loss_coef": 0.0,  # TRL adds a loss that balances experts, which is no part of a recipe
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "disable_dropout": True,
        "seed": 0,
    }
    return GRPOConfig(**fixed | changed)


def trainer(recipe: fo.Recipe, out: str, kind=RecipeTrainer, **changed) -> GRPOTrainer:
    """A trainer of a recipe, or of another kind with the same batches."""
    given = {"recipe": recipe} if issubclass(kind, RecipeTrainer) else {}
    return kind(
        model=model(),
        reward_funcs=rewards,
        args=settings(recipe, out, **changed),
        train_dataset=sums(),
        processing_class=tokenizer(),
        rollout_func=sample,
        **given,
    )


def main(name: str = "minirl") -> list[dict]:
    """Train a few steps with a shipped recipe, or one from a file; what was logged."""
    with tempfile.TemporaryDirectory() as out:
        run = trainer(fo.recipe(name), out)
        run.train()
    return run.state.log_history


if __name__ == "__main__":
    for row in main(*sys.argv[1:])[:-1]:
        print(
            {name: round(value, 4) for name, value in row.items() if name.split("/")[-1] in ("reward", "kl", "k3_kl")}
        )
