"""A hook of mkdocs: the pages on claims in the navigation, which nobody has to list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SECTION = "Claims"


def on_config(config: Any) -> Any:
    """Fill the section: claims about one update first, then those about training."""
    names = sorted(path.stem for path in (Path(config["docs_dir"]) / "claims").glob("*.md"))
    training = [name for name in names if name.startswith("training-")]
    single = [name for name in names if name not in training]
    listed = [{"One update": [_entry(name) for name in single]}, {"Training": [_entry(name) for name in training]}]
    config["nav"] = [{SECTION: listed} if entry == {SECTION: "claims"} else entry for entry in config["nav"]]
    return config


def _entry(name: str) -> dict[str, str]:
    return {name: f"claims/{name}.md"}
