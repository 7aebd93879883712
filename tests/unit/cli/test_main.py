"""Which command runs, and what ``kserve-lmcache --help`` shows."""

from __future__ import annotations

import pytest

from kserve_lmcache import __version__
from kserve_lmcache.cli import main as cli
from kserve_lmcache.errors import UsageError


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The commands that were run, with their arguments."""
    found: list[tuple[str, list[str]]] = []

    def run(command: str, arguments: list[str]) -> int:
        found.append((command, arguments))
        return 0

    monkeypatch.setattr(cli, "_run", run)
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ("serve", [])),
        (["--model_id=a", "--help"], ("serve", ["--model_id=a", "--help"])),
        (["a-model"], ("serve", ["a-model"])),
        (["serve", "--model_id=a"], ("serve", ["--model_id=a"])),
        (["serve", "--help"], ("serve", ["--help"])),
        (["config", "--json"], ("config", ["--json"])),
        (["doctor"], ("doctor", [])),
        (["bench", "report", "x"], ("bench", ["report", "x"])),
        (["demo-model", "here"], ("demo-model", ["here"])),
    ],
)
def test_the_command(
    arguments: list[str], expected: tuple[str, list[str]], ran: list[tuple[str, list[str]]]
) -> None:
    assert cli.main(arguments) == 0
    assert ran == [expected]


def test_help_has_one_line_for_each_command(
    ran: list[tuple[str, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert ran == []
    for command, text in cli.COMMANDS.items():
        assert any(line.split() == [command, *text.split()] for line in lines), command


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"kserve-lmcache {__version__}\n"


@pytest.mark.parametrize("command", ["serve", "config"])
def test_an_error_has_its_exit_code(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: str, arguments: list[str]) -> int:
        raise UsageError("this cannot be")

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main([command]) == 2
    assert capsys.readouterr().err == "kserve-lmcache: error: this cannot be\n"
