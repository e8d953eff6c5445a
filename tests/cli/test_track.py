"""Tracking with the real libraries: what they hold is what the log says, whatever happened in between."""

import json
import os
import resource
import sqlite3
import subprocess
import sys
from statistics import fmean, quantiles

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from firstorder.cli import track
from firstorder.cli.main import run
from firstorder.cli.track.tensorboard import TensorBoard
from firstorder.core.runs.folder import RunFolder
from firstorder.core.runs.logs import LOGS

STEPS = 10
SETTINGS = [
    *(f"schedule.steps={STEPS}", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=0.01"),
    *("sim.checkpoint_every=3", "sim.vocab=3", "sim.horizon=2", "sim.prompts=2", "sim.evaluate_every=4", "sim.width=4"),
]
SINKS = ("tensorboard", "wandb", "trackio")
# W&B's own process is killed after one step, and the run itself after another
INTERRUPTED = """
import os, signal, subprocess, sys
from firstorder.cli.main import run
from firstorder.core.runs.folder import RunFolder

started, append = [], RunFolder.append

class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        started.append(self)

def interrupted(self, log):
    append(self, log)
    if log.step == 2:
        for process in started:
            process.kill()
            process.wait()
    if log.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)

subprocess.Popen, RunFolder.append = Popen, interrupted
run(sys.argv[1:])
"""
PLAIN = "import sys; from firstorder.cli.main import run; sys.exit(run(sys.argv[1:]))"


def command(out, *sinks, members=3, resume=False):
    settings = [word for each in (*SETTINGS, f"sim.members={members}") for word in ("--set", each)]
    tracked = [word for name in sinks for word in ("--track", name)]
    return ["train", "minirl-r3-n2", *settings, "--out", str(out), *tracked, *(["--resume"] if resume else [])]


def process(script, arguments, home, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO", "HF_", "XDG"))}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=clean | {"HOME": str(home), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def rows(folder):
    found = [[json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in LOGS]
    return [metrics | receipts for metrics, receipts in zip(*found, strict=True)]


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "untracked"
    assert run(command(out)) == 0
    return out


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run of three members in every sink, interrupted and resumed: its folder, its home, what both starts said."""
    place = tmp_path_factory.mktemp("runs")
    out, home = place / "tracked", place / "home"
    home.mkdir()
    first = process(INTERRUPTED, command(out, *SINKS), home, WANDB_MODE="offline")
    held = {name: (out / "tracking" / name).is_dir() for name in SINKS}, (out / "tracking" / "id").read_text()
    second = process(PLAIN, command(out, *SINKS, resume=True), home, WANDB_MODE="offline")
    assert second.returncode == 0, second.stderr
    return {"out": out, "home": home, "held": held, "first": first, "second": second}


def test_a_tracked_run_is_the_run_and_nothing_leaves_its_folder(tracked, untracked):
    for name in LOGS:
        assert (tracked["out"] / f"{name}.jsonl").read_bytes() == (untracked / f"{name}.jsonl").read_bytes()
    assert list(tracked["home"].iterdir()) == []
    assert sorted(path.name for path in (tracked["out"] / "tracking").iterdir()) == sorted([*SINKS, "id"])


def test_a_sink_that_dies_is_named_once_and_the_run_goes_on(tracked):
    said = tracked["first"].stderr
    assert tracked["first"].returncode < 0
    assert said.count("--track wandb stopped: ") == 1
    assert "; the run goes on, and --resume --track wandb fills the gap" in said
    assert "--track tensorboard stopped" not in said + tracked["second"].stderr
    assert "stopped" not in tracked["second"].stderr


def test_the_commands_own_output_is_clean_and_says_where_to_look(tracked):
    title, *verdict = tracked["second"].stdout.splitlines()
    assert title.startswith(f"{tracked['out']}: {STEPS} steps in ")
    assert [line.partition(": ")[0] for line in verdict][:2] == ["verdict", "J"]
    places = [line.split(": ", 1) for line in tracked["second"].stderr.splitlines() if line.startswith(SINKS)]
    assert [name for name, _ in places] == list(SINKS)
    assert all(place.startswith(str(tracked["out"] / "tracking" / name)) for name, place in places)


def test_tensorboard_holds_every_step_once_with_formulas_and_settings(tracked):
    folder, log = tracked["out"] / "tracking" / "tensorboard", rows(tracked["out"])
    assert len(list(folder.iterdir())) == 1
    held = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    held.Reload()
    names = set(held.Tags()["scalars"])
    assert names >= {"kl", "q25/kl", "q75/kl", "route/flip_rate_layer_1", "clip_upper", "second_order_remainder"}
    for name in ("kl", "reward", "corrected", "exact/j_pi"):
        expected = [(line["step"], line[name]) for line in log if name in line]
        for tag, value in ((name, fmean), (f"q25/{name}", quartile(0)), (f"q75/{name}", quartile(2))):
            points = held.Scalars(tag)
            assert [point.step for point in points] == [step for step, _ in expected]
            assert [point.value for point in points] == pytest.approx([value(v) for _, v in expected], rel=1e-6)
    described = json.loads((tracked["out"] / "quantities.json").read_text())
    assert {name for name in names if not name.startswith(("q25/", "q75/"))} == described.keys()
    for name, quantity in described.items():
        for tag in (name, f"q75/{name}"):
            assert quantity["formula"] in held.SummaryMetadata(tag).summary_description
    settings = HParamsPluginData.FromString(held.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    chosen = settings.session_start_info.hparams
    assert chosen["clip.high"].number_value == 0.27
    assert chosen["router_replay.mode"].string_value == "R3"
    assert chosen["sim.numerics.kind"].string_value == "noise"
    assert chosen["advantage.std"].bool_value is False
    assert chosen["correction.high"].string_value == "inf"


def quartile(which):
    return lambda members: quantiles(members, n=4, method="inclusive")[which]


def test_wandb_holds_every_step_once_in_one_segment_that_can_be_synced(tracked):
    from wandb.proto.wandb_internal_pb2 import Record

    log = rows(tracked["out"])
    (segment,) = (tracked["out"] / "tracking" / "wandb").glob("offline-run-*")
    (file,) = segment.glob("run-*.wandb")
    records = [Record.FromString(content) for content in entries(file.read_bytes())]
    (started,) = (record.run for record in records if record.HasField("run"))
    assert started.run_id == tracked["held"][1] == (tracked["out"] / "tracking" / "id").read_text()
    assert (started.project, started.display_name) == ("firstorder", "tracked")
    config = {item.key: json.loads(item.value_json) for item in started.config.update if item.key}
    assert config["clip.high"] == 0.27
    assert config["quantities"]["kl"] == "mean(-D) [nats/token]; k1; verl rollout_corr/kl; arXiv 2512.01374"
    history = [record.history for record in records if record.HasField("history")]
    assert [line.step.num for line in history] == list(range(STEPS))
    for line, expected in zip(history, log, strict=True):
        shown = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in line.item}
        assert shown["kl"] == pytest.approx(fmean(expected["kl"]), rel=1e-12)
        assert shown["q25/reward"] == pytest.approx(quartile(0)(expected["reward"]), rel=1e-12)
        assert ("exact/j_pi" in shown) == ("exact/j_pi" in expected)


def entries(data, at=7, block=32768):
    """The records of W&B's file, which has the format of a LevelDB log: blocks of chunks, each whole or a part."""
    held = b""
    while at + 7 <= len(data):
        left = block - at % block
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        held += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield held
            held = b""


def test_trackio_holds_every_step_once_under_one_name(tracked):
    log = rows(tracked["out"])
    with sqlite3.connect(tracked["out"] / "tracking" / "trackio" / "firstorder.db") as held:
        found = held.execute("SELECT run_name, run_id, step, metrics FROM metrics ORDER BY id").fetchall()
        configs = held.execute("SELECT config FROM configs").fetchall()
    held.close()
    assert {name for name, *_ in found} == {f"tracked-{tracked['held'][1]}"}
    assert len({run_id for _, run_id, *_ in found}) == 1
    assert [step for _, _, step, _ in found] == list(range(STEPS))
    for (*_, metrics), expected in zip(found, log, strict=True):
        shown = json.loads(metrics)
        assert shown["kl"] == pytest.approx(fmean(expected["kl"]), rel=1e-12)
        assert shown["q75/truncated"] == quartile(2)(expected["truncated"])
    config = json.loads(configs[0][0])
    assert config["clip.high"] == 0.27
    assert config["quantities"]["ratio_tail_2"].startswith("P(max(rho, 1/rho) > 2)")


def test_a_run_without_a_network_is_a_run_and_catches_up(untracked, tmp_path):
    out, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "WANDB_INIT_TIMEOUT": "1"}
    done = process(PLAIN, command(out, "wandb", "tensorboard"), home, **nowhere)
    assert done.returncode == 0
    assert done.stderr.count("--track wandb stopped: ") == 1
    assert "Traceback" not in done.stderr
    for name in LOGS:
        assert (out / f"{name}.jsonl").read_bytes() == (untracked / f"{name}.jsonl").read_bytes()
    assert tensorboard_steps(out, "kl") == list(range(STEPS))


def tensorboard_steps(out, name):
    held = EventAccumulator(str(out / "tracking" / "tensorboard"), size_guidance={"scalars": 0})
    held.Reload()
    return [point.step for point in held.Scalars(name)]


def test_a_disk_too_full_for_a_sink_costs_the_sink_alone(tmp_path, monkeypatch, capsys):
    """A real limit on the size of files, set for one write of the sink."""
    log, out = TensorBoard.log, tmp_path / "run"

    def limited(self, step, values):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._file.tell() + 100, before[1]))
        try:
            log(self, step, values)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(TensorBoard, "log", limited)
    assert run(command(out, "tensorboard", members=1)) == 0
    said = capsys.readouterr().err
    assert said.count("--track tensorboard stopped: [Errno 27] File too large; the run goes on") == 1
    assert len(rows(out)) == STEPS
    assert tensorboard_steps(out, "kl") == [0, 1, 2, 3]
    monkeypatch.setattr(TensorBoard, "log", log)
    assert run(command(out, "tensorboard", members=1, resume=True)) == 0
    assert tensorboard_steps(out, "kl") == list(range(STEPS))
    held = EventAccumulator(str(out / "tracking" / "tensorboard")).Reload()
    assert not [name for name in held.Tags()["scalars"] if name.startswith("q")]


def test_a_run_that_was_not_tracked_can_be_tracked_later(tmp_path):
    assert run(command(tmp_path / "run", members=1)) == 0
    assert not (tmp_path / "run" / "tracking").exists()
    assert run(command(tmp_path / "run", "tensorboard", members=1, resume=True)) == 0
    assert tensorboard_steps(tmp_path / "run", "kl") == list(range(STEPS))


@pytest.mark.parametrize(
    ("sink", "said"),
    [("tensorbord", "did you mean 'tensorboard'? sinks: tensorboard, wandb, trackio"), ("mlflow", "no sink --track")],
)
def test_an_unknown_sink_is_refused_before_anything_is_written(sink, said, tmp_path, capsys):
    assert run(command(tmp_path / "run", "tensorboard", sink)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sink", track.SINKS)
def test_without_its_library_the_extra_of_a_sink_is_named(sink, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, sink, None)
    assert run(command(tmp_path / "run", sink)) == 2
    assert f"--track {sink} needs its library; pip install 'firstorder[{sink}]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_closes_the_sinks(tmp_path, monkeypatch):
    append, out = RunFolder.append, tmp_path / "run"

    def interrupted(self, log):
        append(self, log)
        if log.step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append", interrupted)
    closed = []
    monkeypatch.setattr(TensorBoard, "close", lambda self: closed.append(self._file.close()))
    assert run(command(out, "tensorboard", members=1)) == 130
    assert closed == [None]
    assert tensorboard_steps(out, "kl") == list(range(5))
    monkeypatch.undo()
    assert run(command(out, "tensorboard", members=1, resume=True)) == 0
    assert tensorboard_steps(out, "kl") == list(range(STEPS))


def test_online_the_server_says_which_step_it_lacks(tmp_path, monkeypatch):
    """There is no server here: what W&B answers is written down, what the sink makes of it is tested."""
    import wandb

    from firstorder.cli.track.wandb import WandB
    from firstorder.core.runs.track import Tracked

    class Answer:
        offline, step, url, sync_dir = False, 7, "https://server/run", str(tmp_path / "run-now")

    asked = {}
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setattr(wandb, "init", lambda **settings: asked.update(settings) or Answer())
    (tmp_path / "offline-run-before").mkdir()
    sink = WandB(Tracked(id="abc", name="r3", folder=tmp_path, hyper={"clip.high": 0.2}, quantities={}))
    assert (sink.next, sink.place) == (7, "https://server/run")
    assert (asked["id"], asked["name"], asked["project"], asked["resume"]) == ("abc", "r3", "mine", "allow")
    assert (tmp_path / "offline-run-before").is_dir()
