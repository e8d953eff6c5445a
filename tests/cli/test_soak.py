import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs/examples/soak.py"


def test_a_short_soak_holds_but_for_memory_which_is_not_yet_flat(tmp_path, capsys):
    runpy.run_path(str(SCRIPT))["main"](tmp_path, 400, 1)
    verdicts = capsys.readouterr().out.splitlines()
    assert len([line for line in verdicts if line[:4] in ("ok  ", "FAIL")]) == 4
    assert [line.split()[1] for line in verdicts if line.startswith("ok")][-3:] == ["logs:", "checkpoints", "killed"]
