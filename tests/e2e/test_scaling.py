"""The commands of `docs/scaling.md`: two processes on this machine, by torchrun and by submitit."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
SMALL = ["stages.0.steps=2", "workers=0", "threads=1", "device=cpu"]


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_updates_of_one(tmp_path: Path) -> None:
    (line,) = re.findall(r"^    (torchrun .*--nproc-per-node 2 .*)$", PAGE, flags=re.M)
    command = shlex.split(line)
    assert command[-1].startswith("out=")
    module = [sys.executable, "-m", "torch.distributed.run", *command[1:-1]]
    extra = ["log_every=1", "model={dropout: 0.0, drop_path: 0.0}"]
    subprocess.run([*module, *extra, f"out={tmp_path / 'two'}"], cwd=ROOT, check=True, timeout=600)
    config = next(part for part in command if part.endswith(".yaml"))
    alone = [sys.executable, "-m", "unival", "train", config, *SMALL, *extra, f"out={tmp_path / 'one'}"]
    subprocess.run(alone, cwd=ROOT, check=True, timeout=600)
    assert (tmp_path / "two" / "model" / "model.safetensors").is_file()
    # Sums over two halves of the batch: float32, a few thousand terms.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


@pytest.mark.slow
def test_the_submitit_script_runs_two_tasks_here(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    (script,) = re.findall(r"```python\n# file: launch\.py\n(.*?)```", PAGE, flags=re.S)
    (tmp_path / "launch.py").write_text(script, encoding="utf-8")
    config = str(ROOT / "configs" / "demo" / "style_noto.yaml")
    arguments = ["local", "2", config, *SMALL, f"out={tmp_path / 'run'}"]
    subprocess.run([sys.executable, "launch.py", *arguments], cwd=tmp_path, check=True, timeout=600)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_the_page_names_commands_and_files_that_exist() -> None:
    for name in re.findall(r"configs/[\w/]+\.yaml", PAGE):
        assert (ROOT / name).is_file(), name
