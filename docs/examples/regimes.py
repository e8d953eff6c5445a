"""Does the replay that the simulator recommends help on real engines? The small MoE trained in every rollout regime.

    python docs/examples/regimes.py FOLDER OUT [SEED ...]

FOLDER is a model, e.g. from `firstorder coldstart steps`. Every run makes the same number of updates from the same
start: on fresh rollouts (N = 1), and with 4 updates a rollout (N = 4). Each is a plain `firstorder train` into a folder
of OUT; those that are there and finished are not run again. The table is Markdown: means over steps, and over seeds.
"""

import json
import sys
from pathlib import Path

from firstorder.cli.main import run

REGIMES = {
    "float32": ["vllm.dtype=float32"],
    "bfloat16": [],
    "fp8 KV cache": ["vllm.kv_cache_dtype=fp8"],
}
REPLAYS = {"none": "minirl-none-n{}", "R2": "minirl-r2-n{}", "R3": "minirl-r3-n{}"}
STALENESS = (1, 4)
UPDATES, PROMPTS = 64, 16  # in all, and of each
COLUMNS = {"k3_kl": ".2g", "route/flip_rate": ".2%", "ratio_tail_2": ".2g", "token_eff_sample_size": ".4f"}


def settings(folder: str, regime: str, updates: int, seed: int) -> list[str]:
    """The assignments of a run."""
    steps = UPDATES // updates
    return [
        *(f"torchtitan.model={folder}", "torchtitan.dtype=float32", f"torchtitan.seed={seed}", "task.kind=sums"),
        *(f"schedule.steps={steps}", f"schedule.prompts={PROMPTS * updates}", "schedule.group_size=8"),
        *("optimizer.lr=1e-4", f"torchtitan.evaluate_every={steps}", "torchtitan.evaluate_prompts=512"),
        *(f"torchtitan.checkpoint_every={steps}", "torchtitan.pack_length=128", "torchtitan.microbatch_rows=64"),
        *REGIMES[regime],
    ]


def trained(folder: str, out: Path, regime: str, replay: str, updates: int, seed: int) -> dict[str, float]:
    """The means of a run's columns, and the last reward on held-out prompts."""
    place = out / f"{regime.replace(' ', '-')}-{replay}-n{updates}-seed{seed}"
    if not (place / "model").is_dir():
        words = [w for each in settings(folder, regime, updates, seed) for w in ("--set", each)]
        resume = ["--resume"] if place.exists() else []
        name = REPLAYS[replay].format(updates)
        code = run(["train", name, "--backend", "torchtitan", *words, "--out", str(place), *resume])
        if code:
            raise SystemExit(code)
    steps = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return {name: sum(s[name] for s in steps) / len(steps) for name in COLUMNS} | {"reward": steps[-1]["eval/reward"]}


def main() -> None:
    """Print the table, a row a run."""
    folder, out, seeds = sys.argv[1], Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]] or [0]
    rows = ["| rollouts | N | replay | k3 KL | flips | F(2) | ESS | held-out reward |", "|---" * 8 + "|"]
    for regime in REGIMES:
        for updates in STALENESS:
            for replay in REPLAYS:
                found = [trained(folder, out, regime, replay, updates, seed) for seed in seeds]
                means = {name: sum(f[name] for f in found) / len(found) for name in found[0]}
                cells = [format(means[name], how) for name, how in COLUMNS.items()]
                rewards = ", ".join(f"{f['reward']:.3f}" for f in found)
                rows.append(f"| {regime} | {updates} | {replay} | {' | '.join(cells)} | {rewards} |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
