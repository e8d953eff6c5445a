"""Everything that a change of structure must leave as it is, taken before it and compared after it.

    python tests/baselines.py take DIR      # on the tree as it is
    python tests/baselines.py compare DIR   # on the tree as it has become: exit code 1 and the names of what moved

It goes through the command line (but for fingerprints), so that it outlives the modules. Byte for byte, but for seconds
and the version of the package: `measure` of every runnable recipe as it is, with FP8 rollouts and two updates
stale; the logs of five-step runs; a run of the earlier tree that is resumed; the verdicts of a quick `validate`; the
fingerprints of all recipes. One thread a process, since sums of several differ in their last digits.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}

CONDITIONS = {"default": [], "fp8": ["sim.numerics.kind=fp8"], "stale": ["sim.staleness=2"]}
RUNS = {
    "none": ["minirl-none-n2"],
    "r2": ["minirl-r2-n2"],
    "r3": ["minirl-r3-n2"],
    "critic": ["minirl-critic"],
    "guess": ["minirl", "sim.task=guess"],
}
SMALL = ["schedule.prompts=8", "schedule.group_size=4", "sim.members=2"]
HALF, WHOLE = 3, 5  # steps before the checkpoint that is resumed, and of a run
TIMED = re.compile(r'"(seconds|version|seconds/\w+|time/\w+)": [^,}\n]+')


def command(*arguments: str) -> str:
    """What a command of `firstorder` writes to standard output."""
    from firstorder.cli.main import run

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(io.StringIO()) as complaint:
        code = run(list(arguments))
    if code != 0:
        raise RuntimeError(f"firstorder {' '.join(arguments)}: exit code {code}: {complaint.getvalue()}")
    return text.getvalue()


def settings(*assignments: str) -> list[str]:
    """Overrides as arguments."""
    return [part for each in assignments for part in ("--set", each)]


RESUMED = settings(*SMALL, f"schedule.steps={WHOLE}", f"sim.checkpoint_every={HALF}")


def recipes() -> list[str]:
    """The names of the shipped recipes, by the files that hold them."""
    return sorted(file.stem for file in (Path(__file__).parents[1] / "core" / "recipes").glob("*.toml"))


def measured(name: str) -> str:
    """The measurement of a recipe under every condition, or why it is refused."""
    try:
        return "".join(command("measure", name, "--json", "-", *settings(*each)) for each in CONDITIONS.values())
    except RuntimeError as refused:
        return str(refused)


def trained(name: str) -> str:
    """The logs of five steps."""
    recipe, *assignments = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        command("train", recipe, *settings(*assignments, *SMALL, f"schedule.steps={WHOLE}"), "--out", folder + "/run")
        return logs(Path(folder) / "run")


def verdicts(_: str) -> str:
    """The record of a first look at the claims."""
    return command("validate", "--quick", "--json", "-")


def fingerprints(_: str) -> str:
    """One line a recipe."""
    from firstorder.core.method.recipe import Recipe, fingerprint
    from firstorder.core.settings.toml import build, read

    return "".join(f"{name} {fingerprint(build(Recipe, read(name)))}\n" for name in recipes())


def logs(folder: Path) -> str:
    """Metrics and receipts of a run."""
    return "".join(f"{each.read_text()}\n" for each in (folder / "metrics.jsonl", folder / "receipts.jsonl"))


def half(folder: Path) -> None:
    """A run of the tree as it is, back at an earlier checkpoint, for a later tree to go on with."""
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as other:
        command("train", "minirl-r3-n2", *RESUMED, "--out", other + "/run")
        shutil.copytree(Path(other) / "run", folder)
    for file in (folder / "checkpoints").glob(f"step-{WHOLE}*"):
        file.unlink()


def resumed(folder: Path) -> str:
    """The logs of that run once it has gone on to the end, in a copy."""
    with tempfile.TemporaryDirectory() as other:
        copy = Path(other) / "run"
        shutil.copytree(folder, copy)
        command("train", "minirl-r3-n2", *RESUMED, "--out", str(copy), "--resume")
        return logs(copy)


def baselines(checkpoint: Path) -> dict[str, str]:
    """Every baseline by name, seconds and versions taken out."""
    work: list[tuple[str, Callable[[str], str], str]] = [("validate", verdicts, ""), ("fingerprints", fingerprints, "")]
    work += [(f"measure-{name}", measured, name) for name in recipes()]
    work += [(f"train-{name}", trained, name) for name in RUNS]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        futures = {key: pool.submit(make, name) for key, make, name in work}
        futures["resume"] = pool.submit(_resumed, str(checkpoint))
        return {key: TIMED.sub(r'"\1": 0', future.result()) for key, future in futures.items()}


def _resumed(folder: str) -> str:
    return resumed(Path(folder))


def take(folder: Path) -> None:
    """Write the baselines of this tree."""
    folder.mkdir(parents=True, exist_ok=True)
    half(folder / "checkpoint")
    for key, text in baselines(folder / "checkpoint").items():
        (folder / f"{key}.txt").write_text(text)
        print(f"{key}: {len(text)} bytes")


def compare(folder: Path) -> int:
    """How many baselines differ on this tree; what they are now lies in `FOLDER/now`."""
    now = folder / "now"
    shutil.rmtree(now, ignore_errors=True)
    now.mkdir()
    moved = 0
    for key, text in baselines(folder / "checkpoint").items():
        before = (folder / f"{key}.txt").read_text() if (folder / f"{key}.txt").is_file() else ""
        if before != text:
            moved += 1
            (now / f"{key}.txt").write_text(text)
            print(f"{key}: differs, {first_difference(before, text)}")
    print(f"{moved} of {len(list(folder.glob('*.txt')))} differ")
    return moved


def first_difference(before: str, now: str) -> str:
    """The first lines of two texts that are not the same."""
    pairs = zip(before.splitlines(), now.splitlines(), strict=False)
    return next((f"{a.strip()!r} is now {b.strip()!r}" for a, b in pairs if a != b), "one is longer")[:400]


if __name__ == "__main__":
    verb, where = sys.argv[1:]
    if verb == "take":
        take(Path(where))
    else:
        print(json.dumps({"folder": where}))
        sys.exit(1 if compare(Path(where)) else 0)
