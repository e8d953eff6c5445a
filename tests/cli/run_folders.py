"""Run folders made up from numbers: few quantities, so that a report of them is drawn at once."""

import json

CONFIG = """
[about]
name = "{recipe}"

[ratio]
of = "{ratio}"

[schedule]
steps = {steps}
minibatches = 4

[sim]
seed = {seed}
members = {members}
"""
COLLAPSES = (0.1, 0.5, 0.9, 0.4, 0.3, 0.2)
LEARNS = (0.1, 0.5, 0.6, 0.7, 0.8, 0.9)


def made(path, objective, *, recipe="minirl", ratio="theta/mu", planned=None, seed=3, **logged):
    """A folder whose J is `objective`, a number or a list of members a step; `logged` are other quantities, as long."""
    path.mkdir(parents=True)
    several = isinstance(objective[0], list)
    known = {"exact/j_pi": objective, "reward": objective} | logged
    metrics = [{"step": step} | {name: each[step] for name, each in known.items()} for step in range(len(objective))]
    none = [0.0] * len(objective[0]) if several else 0.0
    config = {"steps": planned or len(objective), "members": len(objective[0]) if several else 1}
    (path / "config.toml").write_text(CONFIG.format(recipe=recipe, ratio=ratio, seed=seed, **config))
    write(path, "metrics", metrics)
    write(path, "receipts", [{"step": line["step"], "clip_upper": none} for line in metrics])
    return path


def write(path, name, lines):
    (path / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
