"""docs/tutorial.md does what it says: its files are written and its commands run, in order."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"

STEP = re.compile(
    r"(?:^`(?P<file>own/[\w.]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def steps() -> list[tuple[str | None, str, str]]:
    """Return (file, kind, text) of every block, in order."""
    return [(m["file"], m["kind"], m["text"]) for m in STEP.finditer(TUTORIAL.read_text(encoding="utf-8"))]


def test_every_block_is_a_file_or_a_command():
    assert [file for file, kind, _ in steps() if kind != "bash" and file is None] == []
    assert {file for file, _, _ in steps() if file} == {
        "own/data.py",
        "own/model.py",
        "own/hook.py",
        "own/rule.py",
        "own/clinics.toml",
        "own/look.py",
    }


@pytest.mark.slow
def test_the_tutorial_works_as_it_stands(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    said = []
    for file, kind, text in steps():
        if file is not None:
            (tmp_path / file).write_text(text, encoding="utf-8")
            continue
        assert kind == "bash"
        for line in text.splitlines():
            if line.startswith("export"):
                continue  # in `environment`
            words = shlex.split(line)
            if words[0] == "python":
                script = ROOT / words[1] if words[1] == "run_sim.py" else Path(words[1])
                words = [sys.executable, str(script), *words[2:]]
            done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            said.append(done.stdout)
    study = json.loads((tmp_path / "runs/clinics-study/study.json").read_text())
    methods = [method["label"] for method in study["design"]["methods"]]
    assert methods == ["fedavg", "own.rule:LossPower", "own.rule:LossPower[p=0]"]
    values = {(e["method"], e["metric"]): e for e in study["results"]}
    assert values[methods[2], "mean"]["values"] == pytest.approx(values["fedavg", "mean"]["values"])
    assert not values[methods[2], "mean"]["difference"]["significant"]
    assert (tmp_path / "runs/clinics-study/study.html").is_file()
    assert "LossPower[p=0]" in said[-1]
