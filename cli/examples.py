"""What each `--help` ends with: commands to copy."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "validate": ("firstorder validate --quick --only value-identity", "firstorder validate --json claims.json"),
    "measure": (
        "firstorder measure minirl-r3",
        "firstorder measure grpo --set sim.staleness=2 --set sim.numerics.kind=fp8 --json -",
    ),
    "train": (
        "firstorder train minirl-r3-n2 --out runs/r3",
        "firstorder train docs/examples/collapse.toml --set clip.kind=minirl --out runs/cured",
        "firstorder train minirl-r3-n2 --backend torchtitan --set torchtitan.model=small",
    ),
    "resume": ("firstorder resume runs/r3", "firstorder resume runs/r3 --set schedule.steps=400"),
    "sweep": ("firstorder sweep minirl-none-n2 --grid recipe=minirl-none-n2,minirl-r2-n2 --grid sim.lr=0.1,0.2",),
    "coldstart": ("firstorder coldstart steps --out small",),
    "probe": (
        "firstorder probe small --set task.kind=sums --grid vllm.dtype=float32,bfloat16",
        "firstorder probe rollout.jsonl trainer.jsonl",
    ),
    "conformance": ("firstorder conformance export --json vectors.json", "firstorder conformance check answers.json"),
    "study": ("firstorder study", "firstorder study regimes --quick --json regimes.json"),
    "promote": ("firstorder promote qwen3-30b-a3b-r3-n4 --world 64 --set task.kind=reasoning-gym --out bundle",),
    "recommend": (
        "firstorder recommend --kl 1.5e-3 --flips 0.10 --n 4 --horizon 8192",
        "firstorder recommend --match runs/r3",
    ),
    "explore": ("firstorder explore --open", "firstorder explore --out explorer.html"),
    "report": (
        "firstorder report runs/r2 runs/r3 --out report --open",
        "firstorder report runs/r3 --out report --watch",
    ),
    "audit": ("firstorder audit dumps/ --out audit", "firstorder audit dumps/ --follow"),
    "recipes": (
        "firstorder recipes",
        "firstorder recipes grpo --diff dapo",
        "firstorder recipes minirl-r3 > mine.toml",
    ),
    "doctor": ("firstorder doctor", "firstorder doctor --json -"),
    "keys": ("firstorder keys clip", "firstorder keys sim.staleness", "firstorder keys --json -"),
}


def epilog(command: str) -> str | None:
    """The examples of a command under a heading, in lines that are not joined; None without any."""
    lines = EXAMPLES.get(command)
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)]) if lines else None
