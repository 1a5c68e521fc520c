"""What long tasks say where stderr is no terminal."""

from __future__ import annotations

import pytest

from llcuda_ffi.cli import options
from llcuda_ffi.fetch import progress


def test_lines_with_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A counted task says its share, the count and about how long the rest takes; the same line is not said twice."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.Progress("compiling", None, None, unit="step") as shows:
        shows.at(1, 4)
        shows.at(3)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "compiling"
    assert [line.partition(",")[0] for line in said[1:]] == ["  25% (1 of 4 steps", "  75% (3 of 4 steps"]


def test_silence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said where silence was asked for."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.Progress("x", 2, False, unit="prompt") as shows:
        shows.advance(1)
    assert capsys.readouterr().err == ""


def test_a_long_load_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands show the load of a model where bars are seen and it takes longer than a moment; else nothing."""
    for on_screen, moment, words in ((True, 0.0, "loading: 100%"), (True, 60.0, ""), (False, 0.0, "")):
        for module in (options, progress):
            monkeypatch.setattr(module, "on_screen", lambda seen=on_screen: seen)
        monkeypatch.setattr(options, "MOMENT_SECONDS", moment)
        shows = options.Loading()
        for share in (0.0, 0.5, 1.0):
            shows(share)
        said = capsys.readouterr().err
        assert words in said
        assert bool(said) == bool(words)
