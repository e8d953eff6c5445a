"""A hook of mkdocs: the pages on claims in the navigation, which nobody has to list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SECTION = "Claims"


def on_config(config: Any) -> Any:
    """Fill the section, wherever it stands: claims about one update first, then those about training."""
    names = sorted(path.stem for path in (Path(config["docs_dir"]) / "claims").glob("*.md"))
    training = [name for name in names if name.startswith("training-")]
    single = [name for name in names if name not in training]
    config["nav"] = filled(config["nav"], [{"One update": _listed(single)}, {"Training": _listed(training)}])
    return config


def filled(nav: Any, pages: list[Any]) -> Any:
    """The navigation with the section's pages in the place of its name."""
    if isinstance(nav, list):
        return [filled(entry, pages) for entry in nav]
    if isinstance(nav, dict):
        return {title: pages if title == SECTION else filled(inside, pages) for title, inside in nav.items()}
    return nav


def _listed(names: list[str]) -> list[dict[str, str]]:
    return [{name: f"claims/{name}.md"} for name in names]
