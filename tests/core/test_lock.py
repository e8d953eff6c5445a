import gc
import os
import pickle
import subprocess
import sys

import pytest

from firstorder.core.errors import ConfigError
from firstorder.core.runs.folder import RunFolder
from firstorder.core.runs.lock import NAME, Lock

HOLD = """
import sys, time
from pathlib import Path
from firstorder.core.runs.lock import Lock
held = Lock(Path(sys.argv[1]))
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_a_second_process_is_told_who_holds_the_folder_until_it_is_gone(holder, tmp_path):
    with pytest.raises(ConfigError, match=rf"is in use by process {holder.pid} on .+ since .+; wait until it ends"):
        Lock(tmp_path)
    holder.kill()
    holder.wait()
    Lock(tmp_path).release()  # whatever a killed process has left behind


def test_a_folder_is_free_again_after_release_and_nothing_is_left(tmp_path):
    with Lock(tmp_path) as lock, pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
        Lock(tmp_path)
    lock.release()
    assert list(tmp_path.iterdir()) == []
    lost = Lock(tmp_path)
    del lost
    gc.collect()
    Lock(tmp_path).release()


def test_a_copy_sent_to_another_process_holds_and_releases_nothing(tmp_path):
    with Lock(tmp_path) as lock:
        pickle.loads(pickle.dumps(lock)).release()
        assert (tmp_path / NAME).exists()
        with pytest.raises(ConfigError, match="is in use by"):
            Lock(tmp_path)


def test_a_run_that_is_at_work_is_not_resumed_beside_itself(tmp_path):
    first = RunFolder(tmp_path / "run", {"a": 1}, resume=False)
    for resume in (True, False):
        with pytest.raises(ConfigError, match=r"is in use by|exists and is not an empty folder"):
            RunFolder(tmp_path / "run", {"a": 1}, resume=resume)
    first.close()
    RunFolder(tmp_path / "run", {"a": 1}, resume=True).close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot use .*nowhere: No such file or directory; give another --out"):
        Lock(tmp_path / "nowhere")
