"""How far vLLM strays from torchtitan in each rollout regime, with live routes and with R3.

    python docs/examples/regimes.py FOLDER [PROMPTS]

FOLDER is a model, e.g. from `firstorder coldstart`. Every regime samples the same prompts with the same weights and is
scored by the trainer in float32; the last row scores bfloat16 rollouts with a bfloat16 trainer.
"""

import sys
import tempfile
from pathlib import Path

from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.tasks.registry import open_tasks
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.training import open_pair
from firstorder.backends.vllm.config import Vllm
from firstorder.core.agreement import agreement
from firstorder.core.diagnostics import diagnose, means
from firstorder.core.recipe import Recipe, Schedule
from firstorder.core.stats import TokenStats

REGIMES = [
    ("float32", "auto", "float32"),
    ("float16", "auto", "float32"),
    ("bfloat16", "auto", "float32"),
    ("bfloat16", "fp8", "float32"),
    ("bfloat16", "fp8_e5m2", "float32"),
    ("bfloat16", "auto", "bfloat16"),
]


def measure(folder: str, prompts: int, dtype: str, kv: str, trainer: str, checkpoints: Path) -> dict[str, float]:
    """KL, F(2), ESS with live and with replayed routes, and the flip rate, of one regime."""
    recipe = Recipe(schedule=Schedule(prompts=prompts, group_size=4))
    titan = Torchtitan(model=folder, dtype=trainer, pack_length=128, microbatch_rows=64)
    vllm = Vllm(dtype=dtype, kv_cache_dtype=kv)
    tasks = open_tasks(TaskSettings(kind="sums"), Path(folder), vllm.max_prompt)
    pair = open_pair(recipe, titan, vllm, tasks, checkpoints)
    batch = pair.rollout(0)
    live = pair.trainer.score(batch)
    found = {
        name: float(value) for name, value in means(agreement(batch, live.routes, live.margin, live.entropy)).items()
    }
    for label, scores in (("live", live), ("R3", pair.trainer.score(batch, batch.routes))):
        logp = scores.logp.where(batch.mask, 0.0)
        stats = TokenStats(
            logp_theta=logp, logp_old=logp, logp_mu=batch.logp_mu, mask=batch.mask, advantage=batch.rewards
        )
        found |= {f"{name} {label}": float(value) for name, value in diagnose(stats).items()}
        found[f"|D| {label}"] = float((logp - batch.logp_mu)[batch.mask].abs().mean())
    return found


def main() -> None:
    """Print one line of a Markdown table a regime."""
    folder, prompts = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 128
    paired = [f"{name}, {label}" for name in ("mean abs D", "k3 KL", "F(2)", "1 - ESS") for label in ("live", "R3")]
    columns = ["rollouts", "KV cache", "trainer", "flips", "tokens flipped", *paired]
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    for dtype, kv, trainer in REGIMES:
        with tempfile.TemporaryDirectory() as scratch:
            m = measure(folder, prompts, dtype, kv, trainer, Path(scratch))
        pairs = [f"{m[f'{name} {label}']:.2g}" for name in ("|D|", "k3_kl", "ratio_tail_2") for label in ("live", "R3")]
        ess = [f"{1 - m[f'rollout_is_eff_sample_size {label}']:.2g}" for label in ("live", "R3")]
        flips = [f"{m['route/flip_rate']:.2%}", f"{m['route/tokens_flipped']:.2%}"]
        print("|", " | ".join([dtype, kv, trainer, *flips, *pairs, *ess]), "|", flush=True)


if __name__ == "__main__":
    main()
