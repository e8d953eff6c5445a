"""Weights & Biases, online or offline as `WANDB_MODE` says; its other variables are obeyed as well."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import wandb

from firstorder.core.runs.track import Tracked, explain


class WandB:
    """A W&B run that keeps its id, with the configuration as its config and the formulas in there under `quantities`.

    Online the server says which step it wants next. Offline nobody can, and W&B writes in blocks, of which a kill takes
    the last: what an interrupted run has left is replaced by one segment that holds the whole run.
    """

    def __init__(self, run: Tracked) -> None:
        os.environ.setdefault("WANDB_CACHE_DIR", str(run.folder / "cache"))  # its logs, otherwise in the home folder
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "firstorder"),
            id=run.id,
            name=run.name,
            dir=run.folder.parent,  # it makes a folder `wandb` there
            config={**run.hyper, "quantities": explain(run.quantities)},
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        segment = Path(self._run.sync_dir)
        self.next = 0 if self._run.offline else self._run.step
        self.place = str(segment if self._run.offline else self._run.url)
        for old in run.folder.glob("offline-run-*") if self._run.offline else ():
            if old.name != segment.name:
                shutil.rmtree(old)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand a step over to W&B's own process."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until everything is written or sent."""
        self._run.finish()
