"""vLLM servers for the tests: real ones, in processes of their own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(address):
    try:
        urllib.request.urlopen(f"{address}/health", timeout=2).read()
    except OSError:
        return False
    return True


def start(folder, port, log, settings):
    """A server that answers, as (address, process)."""
    command = [sys.executable, "-m", "firstorder.backends.vllm.serve", str(folder), "--port", str(port)]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 240
    while not answers(address):
        log.seek(0)
        assert process.poll() is None, log.read()[-200:]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return address, process


def kill(process):
    """What an out-of-memory killer does, to the server and its workers."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
