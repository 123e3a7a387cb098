"""The model benchmark runs as its command says, and both of its sides compute the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_tiny_benchmark_reports_every_row_and_both_sides_agree() -> None:
    command = [sys.executable, "benchmarks/model.py", "--size", "tiny", "--repeats", "1", "--threads", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ)
    found = json.loads(done.stdout)
    names = {row["name"] for row in found["rows"]}
    assert names >= {"forward", "beam search", "training step", "training step, peak memory"}
    assert all(row["ratio"] > 0 for row in found["rows"])
    assert set(found["stages"]) == {"backbone", "encoder", "decoder, one pass", "decoder, beams"}
    agreement = found["agreement"]
    assert agreement["largest difference"] < 1e-4 * max(agreement["largest logit"], 1.0)
    assert agreement["same hypotheses"]
    plain, ours = agreement["training losses"]
    assert ours == pytest.approx(plain, rel=1e-5)
    assert found["date"]
    assert found["machine"]["processor"]
