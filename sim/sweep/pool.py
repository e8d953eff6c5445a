"""Jobs over processes, on this machine or on a Ray cluster, where a killed process costs its own job a second try.

The executors differ in where a job runs. What is done about one that did not finish is the same function for both.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from importlib import import_module
from typing import Any, ClassVar, Protocol, Self, TypeVar

from firstorder.core import memory
from firstorder.core.errors import ConfigError, DataError, DiskError, WorkerError
from firstorder.core.settings.toml import nearest

ATTEMPTS = 3  # of a job whose process is killed
POLL = 0.5  # seconds between two looks at running jobs


class Job(Protocol):
    """What an executor can run, and run again where its process was killed.

    `remedy` is what a user can do then.
    """

    remedy: ClassVar[str]

    @property
    def title(self) -> str:
        """Its name in an error."""

    def run(self, threads: int) -> Any:
        """Do it, with so many threads of torch; what it returns is handed to the parent."""

    def split(self) -> Sequence[Self]:
        """Smaller jobs that are the same work, none if there are none."""


class Executor(Protocol):
    """Where jobs run.

    `lost` are the exceptions of a job whose process was killed; `cores` and `memory` (bytes) are there for all jobs.
    """

    lost: tuple[type[BaseException], ...]
    cores: int
    memory: int

    def start(self, workers: int) -> None:
        """Be ready for so many jobs at once."""

    def submit(self, job: Job) -> Future[Any]:
        """Run a job in a process of its own, sooner or later."""

    def close(self) -> None:
        """Kill what still runs."""


AnyJob = TypeVar("AnyJob", bound=Job)


def run_all(
    jobs: Sequence[AnyJob],
    executor: Executor,
    done: Callable[[AnyJob, Any], None],
    tick: Callable[[Sequence[AnyJob]], None] = lambda unfinished: None,
) -> None:
    """Run jobs; one that fails is split, so that what stops it takes nothing else with it.

    A job whose process is killed is run again, `ATTEMPTS` times in all, and then in parts, each with as many attempts.
    A job that raises DataError is run in parts at once.

    Args:
        jobs: what to run.
        executor: where, started.
        done: called with each finished job and what it returned.
        tick: called with the unfinished ones about twice a second.

    Raises:
        WorkerError: a job that has no parts was killed at every attempt; all others are done.
        DataError: one that has no parts raised it, or the disk is full.
    """
    waiting = {executor.submit(job): (job, 1) for job in jobs}
    lost: list[AnyJob] = []
    while waiting:
        for future in wait(waiting, timeout=POLL, return_when=FIRST_COMPLETED).done:
            job, attempt = waiting.pop(future)
            error = future.exception()
            killed = isinstance(error, executor.lost)
            if error is None:
                done(job, future.result())
            elif killed and attempt < ATTEMPTS:
                waiting[executor.submit(job)] = job, attempt + 1
            elif (killed or _refused(error)) and (parts := job.split()):
                waiting |= {executor.submit(part): (part, 1) for part in parts}
            elif killed:
                lost.append(job)
            else:
                raise error
        tick([job for job, _ in waiting.values()])
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise WorkerError(
            f"{lost[0].title}{more}: its process was killed {ATTEMPTS} times, which is what a system short of memory "
            f"does; {lost[0].remedy}"
        )


def _refused(error: BaseException) -> bool:
    return isinstance(error, DataError) and not isinstance(error, DiskError)


class Local:
    """Processes on this machine, by joblib's loky.

    Each has a pool of its own, since a pool that loses one process gives up on all that it was given.
    """

    needs = ("joblib", "sweep")

    def __init__(self) -> None:
        joblib = _require(*self.needs)
        self._loky = import_module("joblib.externals.loky.process_executor")
        self.lost: tuple[type[BaseException], ...] = (self._loky.BrokenProcessPool,)
        self.cores, self.memory = joblib.cpu_count(), memory.available()
        self._pools: list[Any] = []
        self._mine = threading.local()

    def start(self, workers: int) -> None:
        """A thread waits for each process."""
        self._threads = max(1, self.cores // workers)
        self._waiting = ThreadPoolExecutor(workers)

    def submit(self, job: Job) -> Future[Any]:
        """Run a job in the first process that is free."""
        return self._waiting.submit(self._wait_for, job)

    def close(self) -> None:
        """Kill the processes; jobs that wait are dropped."""
        self._waiting.shutdown(wait=False, cancel_futures=True)
        for pool in self._pools:
            pool.shutdown(kill_workers=True)

    def _wait_for(self, job: Job) -> Any:
        if not hasattr(self._mine, "pool"):
            self._mine.pool = self._loky.ProcessPoolExecutor(max_workers=1, initializer=_obey, initargs=(os.getpid(),))
            self._pools.append(self._mine.pool)
        try:
            return self._mine.pool.submit(job.run, self._threads).result()
        except self.lost:
            del self._mine.pool
            raise


class Ray:
    """A Ray cluster: the one that RAY_ADDRESS names or that runs on this machine, else one that is started here."""

    needs = ("ray", "ray")

    def __init__(self) -> None:
        self._ray = _require(*self.needs)
        if not self._ray.is_initialized():
            self._ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        errors = self._ray.exceptions
        self.lost: tuple[type[BaseException], ...] = (
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
        )
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        self._largest = int(max(node["CPU"] for node in nodes))
        self.cores = int(sum(node["CPU"] for node in nodes))
        self.memory = int(sum(node["memory"] for node in nodes))

    def start(self, workers: int) -> None:
        """A task for each job; Ray starts them as cores become free."""
        self._threads = max(1, min(self._largest, self.cores // workers))
        self._task = self._ray.remote(max_retries=0, num_cpus=self._threads)(_run)

    def submit(self, job: Job) -> Future[Any]:
        """Run a job on any node."""
        future: Future[Any] = self._task.remote(job, self._threads).future()
        return future

    def close(self) -> None:
        """Leave the cluster, which kills what runs for this process."""
        self._ray.shutdown()


EXECUTORS: dict[str, type[Local] | type[Ray]] = {"local": Local, "ray": Ray}


def open_executor(name: str) -> Executor:
    """The executor of that name.

    Raises:
        ConfigError: there is none, or what it needs is not installed.
    """
    check_executor(name)
    return EXECUTORS[name]()


def check_executor(name: str) -> None:
    """Refuse an executor that cannot be opened; raises as `open_executor` does."""
    if name not in EXECUTORS:
        hint = nearest(name, EXECUTORS)
        raise ConfigError(f"no executor {name!r}; {hint}give --executor {' or '.join(EXECUTORS)}")
    _require(*EXECUTORS[name].needs)


def _run(job: Job, threads: int) -> Any:
    return job.run(threads)


def _obey(parent: int) -> None:
    """In a new process: leave Ctrl-C, which reaches every process of a terminal, to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _require(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise ConfigError(f"sweep needs {module}; pip install 'firstorder[{extra}]'") from None
