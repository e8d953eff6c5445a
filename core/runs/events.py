"""`alarms.jsonl` of a run folder: one object for each alarm that starts or is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from firstorder.core.errors import ConfigError

from .files import write_whole

NAME = "alarms.jsonl"


class Event(BaseModel):
    """An alarm that starts, or is over, in some members at a step.

    Args:
        step: whose log was read.
        alarm: its name in the table.
        quantity: what it reads.
        event: start or end.
        members: their places.
        reading, threshold: what was read and the threshold, one each.
        fitted: whether the run is one that thresholds were fitted for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    alarm: str
    quantity: str
    event: Literal["start", "end"]
    members: tuple[int, ...]
    reading: tuple[float | None, ...]
    threshold: tuple[float | None, ...]
    fitted: bool

    def line(self) -> dict[str, Any]:
        """As it is written."""
        return self.model_dump(mode="json")


def read(folder: Path) -> list[Event]:
    """What the file of a run folder holds, none if it is not there; a last line that is half written is left out.

    Raises:
        ConfigError: it cannot be read, or a line is damaged.
    """
    file = folder / NAME
    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; give another run") from None
    events = []
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            events.append(Event.model_validate_json(text))
        except ValidationError:
            raise ConfigError(
                f"{file} is damaged, line {number}; remove it, and `train --resume --alarm watch` writes it anew"
            ) from None
    return events


def cut(folder: Path, step: int) -> None:
    """Drop the events of steps that will be run again; a file that is damaged is removed, since logs say it all."""
    file = folder / NAME
    if not file.is_file():
        return
    try:
        kept = [event for event in read(folder) if event.step < step]
    except ConfigError:
        file.unlink()
        return
    write_whole(file, "".join(event.model_dump_json() + "\n" for event in kept))
