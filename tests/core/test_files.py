import json
import os
from pathlib import Path

import pytest

from firstorder.core.errors import ConfigError
from firstorder.core.runs.files import to_json, write_whole


def test_a_file_is_written_and_replaced(tmp_path):
    file = tmp_path / "a.json"
    for text in ("first\n", "second ρ\n"):
        write_whole(file, text)
        assert file.read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    file = tmp_path / "a.json"
    file.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ConfigError, match=r"cannot write .*a\.json: No space left on device; free some space"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UnicodeEncodeError("utf-8", "x", 0, 1, "surrogate")])
def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    file = tmp_path / "a.json"
    file.write_text("old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((KeyboardInterrupt, UnicodeEncodeError)):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_device_is_written_to_and_not_replaced():
    reader, terminal = os.openpty()
    path = Path(os.ttyname(terminal))
    write_whole(path, "text\n")
    assert os.read(reader, 100).startswith(b"text")
    assert path.is_char_device()
    os.close(reader)
    os.close(terminal)


def test_a_file_is_as_readable_as_any_other(tmp_path):
    write_whole(tmp_path / "a", "text")
    (tmp_path / "b").write_text("text")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="give a file in a folder that exists"):
        write_whole(tmp_path / "no" / "a.json", "text")


def test_a_folder_in_the_place_of_the_file_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="give a file that can be replaced"):
        write_whole(tmp_path / "a", "text")
    assert os.listdir(tmp_path) == ["a"]


def test_json_has_no_word_for_nan_or_infinity():
    text = to_json({"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (True, None, "ρ")}})
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": {"d": [True, None, "ρ"]}}
    assert text.endswith("}\n")
    assert "ρ" in text
