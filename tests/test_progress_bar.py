"""Bars of long work on a terminal; lines now and then elsewhere; nothing on other ranks."""

import fcntl
import io
import pty
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from sidrec.io import progress
from sidrec.io.progress import Bar, is_terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def by_updates(**settings: object) -> None:
    with Bar(total=4, desc="read", **settings) as bar:  # type: ignore[arg-type]
        for _ in range(4):
            bar.update(1)


def by_iterating(**settings: object) -> None:
    assert list(Bar(range(4), desc="read", **settings)) == [0, 1, 2, 3]  # type: ignore[arg-type]


def by_enumerating(**settings: object) -> None:
    assert [place for place, _ in enumerate(Bar("abcd", desc="read", **settings))] == [0, 1, 2, 3]  # type: ignore[arg-type]


WAYS = [by_updates, by_iterating, by_enumerating]


@pytest.mark.parametrize("work", WAYS)
def test_lines_without_a_terminal(
    work: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    work()
    captured = capsys.readouterr()
    assert [line.split("  ETA")[0] for line in captured.err.splitlines()] == [
        f"read: {share}%" for share in (25, 50, 75, 100)
    ]
    assert captured.out == ""


@pytest.mark.parametrize("work", WAYS)
def test_short_work_prints_no_line(work: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    work()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("work", WAYS)
def test_other_ranks_print_nothing(
    work: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    work(disable=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("work", WAYS)
def test_a_bar_on_a_terminal(work: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    work()
    assert "read: 100%|" in screen.getvalue()
    assert "ETA" not in screen.getvalue()


@pytest.mark.parametrize(
    ("done", "total", "first", "seconds", "expected"),
    [
        (10, 40, 0, 20.0, "read: 25%  ETA 0:01:00"),
        (30, 40, 20, 20.0, "read: 75%  ETA 0:00:20"),  # begun at 20
        (40, 40, 0, 20.0, "read: 100%  ETA 0:00:00"),
        (50, 40, 0, 20.0, "read: 125%  ETA 0:00:00"),
        (1_500, None, 0, 3.0, "read: 1,500 done"),
        (1, 7200, 0, 1.0, "read: 0%  ETA 1:59:59"),
    ],
)
def test_time_left(done: float, total: float | None, first: float, seconds: float, expected: str) -> None:
    bar = Bar(total=total, desc="read", initial=first)
    bar.update(done - first)
    assert bar.line(seconds) == expected


def test_bytes_of_a_file_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    path = tmp_path / "log.csv"
    path.write_bytes(b"x" * 100)
    with path.open("rb") as file, Bar.wrapattr(file, "read", total=100, desc=path.name, disable=None) as watched:
        watched.read(50)
        watched.read(50)
    assert capsys.readouterr().err.splitlines()[-1].startswith("log.csv: 100%  ETA 0:00:00")


@pytest.mark.parametrize(
    ("rows", "columns", "expected"), [(24, 80, True), (24, 1, True), (0, 0, False), (24, 0, False)]
)
def test_terminals_without_columns_are_none(rows: int, columns: int, expected: bool) -> None:
    main, worker = pty.openpty()
    with open(main, "rb", closefd=True), open(worker, "w", encoding="utf-8") as stream:  # noqa: PTH123  # descriptors
        fcntl.ioctl(stream, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        assert is_terminal(stream) == expected


def test_files_are_no_terminals(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="utf-8") as stream:
        assert not is_terminal(stream)
    assert not is_terminal(io.StringIO())
    assert is_terminal(Terminal())
