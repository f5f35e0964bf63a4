"""The commit a run notes: edits of the code since are told apart."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fedsim import environment


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, whose file the module takes itself for."""
    file = tmp_path / "repository" / "fedsim" / "environment.py"
    file.parent.mkdir(parents=True)
    file.write_text("one = 1\n")
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", *words], cwd=tmp_path / "repository", check=True)
    monkeypatch.setattr(environment, "__file__", str(file))
    return file


def commit() -> str:
    found = environment.versions()["commit"]
    assert isinstance(found, str)
    return found


def test_two_edits_are_told_apart(code: Path) -> None:
    clean = commit()
    assert len(clean) == 40
    code.write_text("two = 2\n")
    edited = commit()
    assert edited.startswith(f"{clean}+edited.")
    assert len(edited) == len(clean) + len("+edited.") + 8
    code.write_text("three = 3\n")
    assert commit() not in (clean, edited)
    code.write_text("two = 2\n")
    assert commit() == edited
    code.write_text("one = 1\n")
    assert commit() == clean


def test_a_file_that_git_does_not_know_is_an_edit_too(code: Path) -> None:
    clean, new = commit(), code.with_name("mine.py")
    found = {clean}
    for text in ("a = 1\n", "a = 2\n"):
        new.write_text(text)
        found.add(commit())
    new.rename(code.with_name("other.py"))
    found.add(commit())
    assert len(found) == 4


def test_what_is_in_no_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.resolve()))
    (tmp_path / "fedsim").mkdir()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "fedsim" / "environment.py"))
    assert environment.versions()["commit"] is None
