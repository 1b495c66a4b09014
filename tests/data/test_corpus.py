"""Files that once failed, and those that fuzzing starts from: each has its right answer, or an error of one line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import fuzz

# file -> its value, or a part of its error; a new find of `fuzz.py` is not there yet.
EXPECTED = json.loads((fuzz.CORPUS / "expected.json").read_text())
FILES = [f"{kind}/{path.name}" for kind in fuzz.READERS for path in sorted((fuzz.CORPUS / kind).iterdir())]


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_the_corpus_is_read_right_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name  # a copy: a reader that writes would change the corpus
    path.parent.mkdir()
    shutil.copy(fuzz.CORPUS / name, path)
    kind, answer = fuzz.outcome(path)
    assert path.read_bytes() == (fuzz.CORPUS / name).read_bytes()
    expected = EXPECTED.get(name)
    if kind == "error":
        assert expected is None or (isinstance(expected, str) and expected in str(answer)), answer
    else:
        assert expected is None or expected == json.loads(json.dumps(answer)), answer


def test_the_corpus_is_small_and_whole() -> None:
    assert sum(path.stat().st_size for path in fuzz.CORPUS.rglob("*")) < 300_000
    assert set(EXPECTED) <= set(FILES)


@pytest.mark.parametrize(
    "code", ["raise KeyError('x')", "raise DataError('two\\nlines')", "os.kill(os.getpid(), 9)"]
)
def test_the_fuzzer_sees_a_failure(code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def reader(path: Path) -> None:
        exec(f"import os\nfrom video_papr.core.errors import DataError\n{code}")

    monkeypatch.setitem(fuzz.READERS, "lists", reader)
    path = tmp_path / "lists" / "a.csv"
    path.parent.mkdir()
    path.write_text("a.mp4,0\n")
    assert fuzz.fails(path) is not None
    monkeypatch.setitem(fuzz.READERS, "lists", lambda path: None)
    assert fuzz.fails(path) is None
