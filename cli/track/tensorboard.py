"""TensorBoard: one event file, written anew from the logs when a run is resumed, so that no step stands there twice."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from firstorder.core.runs.track import Tracked, explain


class TensorBoard:
    """Scalars with their formulas as descriptions, and the configuration as hyper-parameters.

    Every step is written out before `log` returns: `EventFileWriter` would do so in a thread, and fail there.
    """

    next = 0

    def __init__(self, run: Tracked) -> None:
        for old in run.folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.place = str(run.folder)
        self._meaning, self._seen = explain(run.quantities), set[str]()
        self._file = (run.folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}").open("wb")
        self._writer = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(summary=hparams_pb(dict(run.hyper), trial_id=run.id)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step."""
        scalars = [
            Summary.Value(tag=name, simple_value=value, metadata=self._described(name))
            for name, value in values.items()
        ]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _described(self, name: str) -> SummaryMetadata | None:
        """The description of a name, which TensorBoard reads from its first value."""
        if name in self._seen:
            return None
        self._seen.add(name)
        meaning = self._meaning.get(name.removeprefix("q25/").removeprefix("q75/"), "")
        return create_summary_metadata(display_name=name, description=meaning)

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        try:
            self._writer.write(event.SerializeToString())
            self._file.flush()
        except OSError:
            self._file.close()
            raise
