"""`--help` is quick because the command lines import nothing heavy until a command runs."""

import importlib.util
import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "matplotlib",
    "timm",
    "torchvision",
    "torchaudio",
    "av",
    "soundfile",
    "PIL",
    "numpy",
}
SCRIPT = """
import importlib, sys
from typer.testing import CliRunner
module = importlib.import_module(sys.argv[1])
result = CliRunner().invoke(module.app, ["--help"])
assert result.exit_code == 0, result.output
print(result.output)
print("MODULES", *sorted(name.split(".")[0] for name in sys.modules))
"""


@pytest.mark.parametrize("module", ["unival.cli", "soups.cli"])
def test_help_imports_nothing_heavy(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not written yet")
    done = subprocess.run([sys.executable, "-c", SCRIPT, module], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text, _, modules = done.stdout.rpartition("MODULES ")
    assert "Usage" in text
    assert not HEAVY & set(modules.split())
