"""The exceptions a user can meet; each also inherits the standard class a caller would expect."""


class FirstOrderError(Exception):
    """Root of every error raised on purpose; its message is one line: what, got, remedy.

    Attributes:
        code: what the command line exits with: 2 for bad input, 1 where a check failed.
    """

    code = 2


class ConfigError(FirstOrderError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(FirstOrderError, ValueError):
    """A rollout, a reward or a route breaks the contract of `core.training.batch`."""


class ReplayError(DataError):
    """Routing Replay is on and did not do what was asked of it."""

    code = 1


class SizeError(FirstOrderError, MemoryError):
    """An enumeration does not fit: says how large it is and which setting to lower."""


class NotFiniteError(DataError):
    """Weights, a gradient or a result are NaN or infinite: says which, and what may be behind it."""


class DiskError(DataError):
    """A run cannot be recorded: the disk is full or gone. Nothing is wrong with the run."""


class WorkerError(FirstOrderError, RuntimeError):
    """The process that did a piece of work was killed, again and again."""
