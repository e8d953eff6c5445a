"""What replay brings and what it costs: the parts of what an update is off by, for every way to replay.

    python docs/examples/replay.py [tree|long [SEED [UPDATES ...]]]

MiniRL without a clip. `tree` has the engines of `[sim]` by default; `long` has responses of 512 tokens, 32 experts and
a noise fitted to what is published of Qwen3-30B-A3B with FP8 rollouts, 1.5e-3 nats a token and 10% of the routes.
UPDATES are the mini-batches that are looked at, counted from 0: how many updates came before. The parts are those of
the gradient (docs/theory.md), each by its length relative to that of the natural gradient.
"""

import sys
from collections.abc import Sequence

from firstorder.sim.exact.split import Splits
from firstorder.sim.studies.replayed import KEYS, numbers, rules, split

COLUMNS = ("replay", "updates before", "J(target) - J(natural)", "KL to target", *KEYS, "in all")


def line(rule: str, one: Splits) -> str:
    """A row of the table, in Markdown."""
    bias, apart, *sizes = numbers(one).values()
    cells = [rule, str(one.staleness), f"{bias:+.1e}", f"{apart:.2e}", *(f"{size:.4f}" for size in sizes)]
    return "| " + " | ".join(cells) + " |"


def main(name: str = "tree", seed: int = 0, updates: Sequence[int] = (0, 3)) -> list[list[Splits]]:
    """Print the table, a row for each way to replay at each mini-batch."""
    found = split(name, seed, updates)
    print(f"KL(mu || pi) {found[0][0].kl.total:.2e} nats a token\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in found:
        for rule, one in zip(rules(name), row, strict=True):
            print(line(rule, one))
    return found


if __name__ == "__main__":
    first, *rest = [*sys.argv[1:2], "tree"][:1] + sys.argv[2:]
    main(first, int(rest[0]) if rest else 0, [int(each) for each in rest[1:]] or (0, 3))
