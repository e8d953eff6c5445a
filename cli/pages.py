"""Where an error sends its reader: the page of a refused setting or a missing library, or what lists the keys."""

from __future__ import annotations

import re

METHOD = "docs/recipes.md"
SECTIONS = {
    **dict.fromkeys(
        ("about", "advantage", "ratio", "correction", "rejection", "clip", "aggregation", "terms", "router_replay"),
        METHOD,
    ),
    **dict.fromkeys(("schedule", "optimizer", "critic"), METHOD),
    "sim": "docs/measure.md",
    "torchtitan": "docs/engines.md",
    "vllm": "docs/engines.md",
    "task": "docs/engines.md",
}
"""The page with the keys of a section."""
EXTRAS = {
    "report": "docs/report.md",
    "notebook": "docs/python.md",
    "sweep": "docs/sweep.md",
    "ray": "docs/sweep.md",
    "audit": "docs/audit.md",
    "tensorboard": "docs/train.md",
    "wandb": "docs/train.md",
    "trackio": "docs/train.md",
}
"""The page with what an extra is for."""
LISTED = re.compile(r"docs/|`firstorder (keys|recipes)")  # by which a message says already where to read on
UNKNOWN = re.compile(r"unknown key '(\w+)\.")
ASSIGNED = re.compile(r"(?:^|: )\[?(\w+)(?:\.\w+)* = ")  # how a refused combination begins
EXTRA = re.compile(r"pip install 'firstorder\[(\w+)\]'")


def guided(message: str) -> str:
    """A message with where to read on, if that is known and not said yet.

    Example:
        >>> guided("unknown key 'clip.hihg'; valid keys: high, kind, low")
        "unknown key 'clip.hihg'; valid keys: high, kind, low; `firstorder keys clip` explains them"
        >>> guided("report draws with matplotlib; pip install 'firstorder[report]'")
        "report draws with matplotlib; pip install 'firstorder[report]', see docs/report.md"
        >>> guided("interrupted")
        'interrupted'
    """
    if LISTED.search(message):
        return message
    if (found := UNKNOWN.search(message)) and found[1] in SECTIONS:
        return f"{message}; `firstorder keys {found[1]}` explains them"
    if "unknown section" in message:
        return f"{message}; `firstorder keys` lists what is in them"
    if (found := EXTRA.search(message)) and found[1] in EXTRAS:
        return f"{message}, see {EXTRAS[found[1]]}"
    if (found := ASSIGNED.search(message)) and found[1] in SECTIONS:
        return f"{message}, see {SECTIONS[found[1]]}"
    return message
