"""The explorer: one page that shows which replay a regime asks for, and a tiny policy token by token."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

OUT = "explorer.html"


@dataclass(frozen=True, kw_only=True)
class ExploreResult:
    """A written explorer.

    Args:
        page: the file.
        shown: whether a browser was asked to show it.
    """

    page: Path
    shown: bool

    def __str__(self) -> str:
        step = "opened in the browser" if self.shown else "open it in a browser; it needs no network"
        return f"{self.page}: {step}. For a regime between its steps ask firstorder recommend"


def explore(out: str | os.PathLike[str] = OUT, *, show: bool = False) -> ExploreResult:
    """Write the explorer: which replay a regime asks for, and what replay does to a tiny policy, on one page.

    Args:
        out: the HTML file; one that is there is replaced.
        show: open it in the browser.

    Raises:
        ConfigError: the file cannot be written.
        DataError: the data in the package cannot be read.
    """
    from firstorder.cli.report.explorer import page
    from firstorder.core.runs.files import write_whole

    target = Path(out)
    write_whole(target, page())
    return ExploreResult(page=target, shown=show and _shown(target))


def _shown(page: Path) -> bool:
    """Whether a browser took it."""
    import webbrowser

    return webbrowser.open(page.resolve().as_uri())
