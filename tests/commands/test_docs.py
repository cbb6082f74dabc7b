from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from commands import docs
from llamafn.settings import VARIABLES


def test_the_generated_documentation_is_current() -> None:
    assert docs.run(argparse.Namespace(check=True)) == 0


def test_every_variable_has_a_row_with_its_default() -> None:
    rows = docs.generated()[docs.CONFIGURATION].splitlines()

    assert [row.split(" | ")[0] for row in rows if row.startswith("| `")] == [f"| `{one.name}`" for one in VARIABLES]
    assert any(row.startswith("| `REQUEST_TIMEOUT_SECONDS` | `45` | 0.1 to 3,600 seconds |") for row in rows)
    assert any(row.startswith("| `N_THREADS` | the CPU quota |") for row in rows)


def test_a_stale_file_is_said_and_then_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "CONFIGURATION", tmp_path / "docs" / "configuration.md")

    assert docs.run(argparse.Namespace(check=True)) == 1
    assert capsys.readouterr().out == "docs/configuration.md is out of date.\n"
    assert not docs.CONFIGURATION.exists()

    assert docs.run(argparse.Namespace(check=False)) == 0
    assert docs.run(argparse.Namespace(check=True)) == 0
