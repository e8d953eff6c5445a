"""A training run's batches written as they are scored, a file a step: each whole or not there, so that a run that is
resumed writes the steps that it repeats again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from firstorder.core.errors import ConfigError, DiskError
from firstorder.core.training.backend import Scored

from . import neutral, prime_rl_writer
from .batches import samples_of
from .neutral import Run
from .sample import Sample


@dataclass(frozen=True, kw_only=True)
class Writer:
    """How a step is written.

    Args:
        check: refuses where it cannot be written, for want of a library.
        write: the samples of a step, into a folder.
    """

    check: Callable[[], None]
    write: Callable[[Path, int, Iterable[Sample], Run], None]


def _parquet(folder: Path, step: int, samples: Iterable[Sample], run: Run) -> None:
    neutral.write(folder / f"step_{step:06d}{neutral.SUFFIX}", samples, run)


def _token_exports(folder: Path, step: int, samples: Iterable[Sample], run: Run) -> None:
    prime_rl_writer.write(folder, step, samples)


WRITERS: Mapping[str, Writer] = {
    "neutral": Writer(check=neutral.check, write=_parquet),
    "prime-rl": Writer(check=lambda: None, write=_token_exports),
}


@dataclass(frozen=True, kw_only=True)
class Dumper:
    """Takes the batches of a run.

    Args:
        folder: of the dump; several members have folders of their own in it, `member_0`, ...
        writer: of one form.
        run: what is known of the run.
    """

    folder: Path
    writer: Writer
    run: Run

    def take(self, step: int, scored: Scored) -> None:
        """Write the batch of a step.

        Raises:
            DiskError: the disk is full or gone; the run can be resumed.
        """
        members = [None] if scored.logp_old.ndim == 2 else list(range(len(scored.logp_old)))
        for member in members:
            folder = self.folder / f"member_{member}" if len(members) > 1 else self.folder
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self.writer.write(folder, step, samples_of(step, scored, member), self.run)
            except (OSError, ConfigError) as error:
                reason = getattr(error, "strerror", None) or error
                raise DiskError(f"the dump cannot be written: {reason}; go on with --resume") from None
