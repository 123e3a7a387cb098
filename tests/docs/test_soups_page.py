"""The page about soups is executed: its files are written, its commands run, in the order of the page."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from soups.cli import app
from soups.methods import get_method

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(python|yaml|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of other libraries; ours are tested elsewhere
def test_every_block_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    blocks = BLOCK.findall((ROOT / "docs" / "soups.md").read_text(encoding="utf-8"))
    assert len(blocks) > 15
    # Functions that a later block adds are there from the start: a module is imported once.
    for kind, text in blocks:
        name = re.match(r"# (file|append): (\S+)\n", text)
        if kind != "console" and name:
            with Path(name[2]).open("a" if name[1] == "append" else "w") as file:
                file.write(text.partition("\n")[2])
    commands = set()
    for number, (kind, text) in enumerate(blocks):
        if kind == "console":
            for line in text.splitlines():
                commands.add(run(line, number))
        elif not text.startswith("# "):
            Path("page.py").write_text(text)
            runpy.run_path("page.py")
    from soups.cli import COMMANDS

    assert commands >= set(COMMANDS) - {"methods"}


def run(line: str, number: int) -> str:
    program, *words = shlex.split(line.removeprefix("$ "))
    if program == "python":
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        assert done.returncode == 0, f"block {number}: {line}\n{done.stderr}"
        return program
    assert program == "soups", line
    words = [sys.executable + word.removeprefix("python") if word.startswith("python ") else word for word in words]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"block {number}: {line}\n{done.output}{done.exception!r}"
    return words[0]


def test_the_method_of_the_page_keeps_the_laws(tmp_path):
    text = (ROOT / "docs" / "soups.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n# method: trimmed_mean\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "trimmed_mean.py").write_text(block)
    method = get_method(str(tmp_path / "trimmed_mean.py"))
    assert method.params == {"trim": 0.2}
    models = [torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]

    def merged(tensors, weights):
        out = torch.empty_like(tensors[0])
        method.merge_into(out, tensors, weights)
        return out

    expected = torch.stack(models).double().sort(dim=0).values[1:4].mean(dim=0)
    torch.testing.assert_close(merged(models, [0.2] * 5).double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(merged(models, [0.2] * 5), merged(models[::-1], [0.2] * 5))
    assert torch.equal(merged([models[0]] * 4, [0.25] * 4), models[0])
    assert torch.equal(merged(models, [0, 0, 1, 0, 0]), models[2])
