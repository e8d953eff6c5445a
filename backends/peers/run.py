"""Answers of one peer to the golden vectors, as JSON: runs where the peer is installed, and imports nothing else of
this package but its own room."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .inputs import batches


def main(peer: str, vectors: str, out: str) -> None:
    """Write to `out` what a peer makes of every case: `{"peer", "version", "torch", "rows": {row: {case: ...}}}`."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # of lists of numbers, which a peer makes tensors of
    tree = json.loads(Path(vectors).read_text(encoding="utf-8"))
    module = import_module(f"firstorder.backends.peers.{peer}")
    cases = batches(tree)
    rows = {
        name: {case: tried(make, batch) for case, batch in cases.items()} for name, make in module.answers().items()
    }
    rewards, values, rules = (tree["groups"][key] for key in ("rewards", "values", "rules"))
    for name, make in module.of_rewards().items():
        rows[name] = {group: tried(make, given) for group, given in rewards.items()}
    for name, make in module.of_values().items():
        for keys in rules.values():
            if keys["advantage.baseline"] == "value":
                lam = keys["advantage.gae_lambda"]
                rows[f"{name}, lambda {lam:g}"] = {case: tried(make, each, lam) for case, each in values.items()}
    answer = {"peer": peer, "version": version(peer), "torch": torch.__version__, "rows": rows}
    Path(out).write_text(json.dumps(plain(answer)), encoding="utf-8")


def tried(make: Callable[..., Any], *given: Any) -> dict[str, Any]:
    """What a function of a peer gives, or the last line of what it says when it fails."""
    try:
        return {"got": make(*given)}
    except Exception as error:
        print(traceback.format_exc(), file=sys.stderr)
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def plain(value: Any) -> Any:
    """JSON without NaN and infinities, which become texts."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value
