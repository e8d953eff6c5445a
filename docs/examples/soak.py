"""A long run of the training loop on the simulator, killed and resumed on its way, beside one that was left alone.

    python docs/examples/soak.py OUT [STEPS] [KILLS]

Checks that memory is flat, that files are bounded (two checkpoints, logs of as many bytes a step at the end as at the
start) and that the run that was killed logged what the other did, byte for byte. Exit code 1 if one does not hold.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = (
    *("schedule.prompts=2", "schedule.group_size=2", "optimizer.lr=1e-3", "sim.vocab=3", "sim.horizon=3"),
    *("sim.prompts=2", "sim.width=4", "sim.expert_width=4", "sim.experts=4", "sim.evaluate_every=500"),
)
LOGS = ("metrics.jsonl", "receipts.jsonl")
FLAT = 8 << 20  # bytes that memory may grow by between a tenth of the run and its end
EVEN = 0.05  # share by which the bytes of a step may differ


def main(out: Path, steps: int = 10_000, kills: int = 5) -> int:
    """Both runs and the verdict."""
    whole = watch(out / "whole", steps, [])
    killed = watch(out / "killed", steps, [steps * (2 * i + 1) // (2 * kills) for i in range(kills)])
    early, late = (sum(part) / len(part) for part in parts(whole["memory"]))
    sizes = [len(line) for line in (out / "whole/metrics.jsonl").read_bytes().splitlines() if b"exact/" not in line]
    first, last = (sum(part) / len(part) for part in parts(sizes))
    kept = len(list((out / "whole/checkpoints").glob("*.pt")))
    same = all((out / "whole" / log).read_bytes() == (out / "killed" / log).read_bytes() for log in LOGS)
    checks = {
        f"memory: {early / 2**20:.0f} MiB early, {late / 2**20:.0f} MiB late": late - early < FLAT,
        f"logs: {first:.0f} bytes a step early, {last:.0f} late": abs(last / first - 1) < EVEN,
        f"checkpoints kept: {kept}": kept == 2,
        f"killed {killed['kills']} times and resumed, the same logs": same and killed["kills"] == kills,
    }
    for what, holds in checks.items():
        print(f"{'ok  ' if holds else 'FAIL'} {what}")
    print(f"{steps} steps in {whole['seconds']:.0f} s")
    return 0 if all(checks.values()) else 1


def watch(folder: Path, steps: int, at: list[int]) -> dict:
    """Train `folder` to its end, killing it once it has logged each number of steps in `at`."""
    started, memory, kills = time.perf_counter(), [], 0
    process = launch(folder, steps)
    while process.poll() is None:
        done = logged(folder)
        if done > steps // 10 and not at:
            memory.append(resident(process.pid))
        if kills < len(at) and done >= at[kills]:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            process = launch(folder, steps, "--resume")
        time.sleep(max(0.1, steps / 10_000))  # the log is read each time
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    return {"seconds": time.perf_counter() - started, "memory": [m for m in memory if m], "kills": kills}


def launch(folder: Path, steps: int, *more: str) -> subprocess.Popen:
    """A training run in a process of its own."""
    sets = [word for one in (f"schedule.steps={steps}", *SETTINGS) for word in ("--set", one)]
    program = "from firstorder.cli.main import main; main()"
    command = [sys.executable, "-c", program, "train", "minirl-r3-n2", *sets, "--out", str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def logged(folder: Path) -> int:
    """Steps in the log."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def resident(process: int) -> int:
    """Bytes of memory that a process has; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def parts(values: list) -> tuple[list, list]:
    """The first and the last tenth."""
    tenth = max(1, len(values) // 10)
    return values[:tenth], values[-tenth:]


if __name__ == "__main__":
    place, *numbers = sys.argv[1:]
    raise SystemExit(main(Path(place), *map(int, numbers)))
