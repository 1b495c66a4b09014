"""What loading changed about weights reaches the user as one line each; other warnings are left alone."""

from __future__ import annotations

import warnings

import pytest

from video_papr.core.console import loading_said_aloud
from video_papr.core.errors import CheckpointError, CheckpointWarning


def test_changes_are_printed_and_other_warnings_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(DeprecationWarning, match="old") as caught, loading_said_aloud():
        warnings.warn("the head is new", CheckpointWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert [entry.category for entry in caught] == [DeprecationWarning]
    assert capsys.readouterr().err == "warning: the head is new\n"


def test_changes_are_printed_before_an_error_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError), loading_said_aloud():
        warnings.warn("the head is new", CheckpointWarning, stacklevel=1)
        raise CheckpointError("but")
    assert "the head is new" in capsys.readouterr().err
