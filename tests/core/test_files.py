"""Files are written whole or not at all, and what the disk refuses is one line."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from video_papr.core.errors import StorageError
from video_papr.core.files import atomic_write, remove_partial, storing


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new/results.json"
    atomic_write(path, '"old \udcff"')  # from a name that is not UTF-8
    assert path.stat().st_mode & 0o777 == 0o644
    assert json.loads(path.read_text(encoding="utf-8")) == "old \udcff"
    atomic_write(path, lambda file: file.write(b"as written"))
    assert path.read_bytes() == b"as written"

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(StorageError, match="results.json: No space left on device.*free some space"):
            atomic_write(path, b"other")
    assert path.read_bytes() == b"as written"
    assert list(path.parent.iterdir()) == [path], "no half file stays"
    (path.parent / ".results.json.x.partial").touch()  # a killed process leaves one
    remove_partial(path.parent)
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(os.fstat(handle).st_size) or sync(handle))
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("named") or replace(*names))
    atomic_write(tmp_path / "a", b"all of it")
    assert calls == [9, "named"]


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EMFILE, "ulimit -n"), (errno.EDQUOT, "free some space"), (errno.EIO, "run it again")],
)
def test_errors_of_writing_say_what_to_do(number, hint):
    with pytest.raises(StorageError, match=f"^cannot write here: .*{hint}"), storing(Path("here")):
        raise OSError(number, os.strerror(number))


def test_a_full_disk_behind_an_error_of_torch_is_told():
    full = pytest.raises(StorageError, match="^cannot write here: No space left on device")
    with full, storing(Path("here")), open("/dev/full", "wb", buffering=0) as file:
        torch.save({"a": torch.zeros(9)}, file)
    with pytest.raises(RuntimeError, match="a mistake"), storing(Path("here")):
        raise RuntimeError("a mistake")
