"""trackio, local unless `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` says otherwise."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from firstorder.core.runs.track import Tracked, explain

PROJECT = "firstorder"


class Trackio:
    """A trackio run that keeps its name, with the configuration as its config and the formulas under `quantities`.

    trackio reads `TRACKIO_DIR` when it is imported and never again, so that one process tracks in one folder.
    """

    def __init__(self, run: Tracked) -> None:
        self.place = os.environ.get("TRACKIO_DIR", str(run.folder))
        with _directory(self.place):
            import trackio
            from trackio.utils import TRACKIO_DIR
        if Path(self.place) != TRACKIO_DIR:
            raise RuntimeError(f"this process tracks in {TRACKIO_DIR} already; start the run in another process")
        self._trackio: Any = trackio
        with _quiet():
            self._run: Any = trackio.init(
                project=PROJECT,
                name=f"{run.name}-{run.id}",
                config={**run.hyper, "quantities": explain(run.quantities)},
                resume="allow",
                embed=False,
            )
        self.next = int(self._run._next_step)  # nothing public says it for a local and for a remote run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand a step over to trackio's own thread."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until everything is written or sent."""
        with _quiet():
            self._trackio.finish()


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Standard output belongs to the command, not to what it calls."""
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def _directory(folder: str) -> Iterator[None]:
    """`TRACKIO_DIR` for the time of the import."""
    before = os.environ.get("TRACKIO_DIR")
    os.environ["TRACKIO_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["TRACKIO_DIR"]
