"""The page of data sets and the scripts in `preprocessing/` name each other; every script explains itself."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path for path in (ROOT / "preprocessing").glob("*.py") if path.stem != "official")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_listed_and_shows_its_command(path: Path) -> None:
    assert f"`{path.stem}`" in PAGE
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert f"preprocessing.{path.stem} " in doc or f"preprocessing/{path.name} " in doc, "the command is missing"


def test_every_script_that_the_page_names_exists() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert named <= {path.stem for path in SCRIPTS}
    assert len(named) > 20


def test_the_benchmark_s_configurations_name_their_script() -> None:
    for path in sorted((ROOT / "configs" / "benchmark").glob("*.yaml")):
        scripts = re.findall(r"python -m preprocessing\.(\w+)", path.read_text(encoding="utf-8"))
        assert scripts, path
        assert all((ROOT / "preprocessing" / f"{script}.py").is_file() for script in scripts), path


def test_configurations_look_for_manifests_where_scripts_write_them() -> None:
    written = set()
    for text in re.findall(r"`([\w]+/[\w{},]+)`", PAGE):
        folder, names = text.split("/")
        written |= {f"{folder}/{name}" for name in names.strip("{}").split(",")}
    own = {"audio_qa/test"}  # of no public data set
    built = {"esc10", "esc10_qa", "fsdd", "fsdd_qa", "nlvr", "nlvr_grounding", "tux_paint"}  # `configs/benchmark`
    assert len(written) > 50
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        for name in re.findall(r"\$data/([\w/]+)\.jsonl", path.read_text(encoding="utf-8")):
            assert name in written | own or name.split("/")[0] in built, f"{path}: no script writes {name}.jsonl"
