"""What every file of the repository keeps to: no private paths, no unsafe loading, no oversized modules."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400
# Files that may be longer, each with the reason.
LONG_FILES: dict[str, str] = {}
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".jsonl", ".cfg", ".txt", ".html", ".sh", ""}
# Folders that exist on somebody's machine only. Split, so that this file does not find itself.
PRIVATE_PATH = re.compile(r"(?<![\w.\-/])/(?:" + "|".join(["work", "home", "root", "Users", "mnt", "lus"]) + r")/\w")


def repository_files() -> list[Path]:
    """List what is or would be committed; without git (an unpacked archive), everything but caches."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        hidden = {".venv", ".git", "__pycache__", "build", "dist", "runs"}
        files = [path for path in ROOT.rglob("*") if not hidden & set(path.relative_to(ROOT).parts)]
    return [path for path in files if path.is_file()]


FILES = repository_files()
SOURCES = [
    path
    for path in FILES
    if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in {"unival", "soups", "preprocessing", "setup.py"}
]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix in TEXT], ids=relative)
def test_no_file_names_a_folder_of_somebodys_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = [text[max(match.start() - 20, 0) : match.end() + 20] for match in PRIVATE_PATH.finditer(text)]
    assert not found


def unsafe_calls(tree: ast.AST) -> Iterator[str]:
    """Yield what runs code out of data (pickle, YAML objects, eval), or a shell."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            modules = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
            yield from (f"import {name}" for name in names if name.split(".")[0] in modules)
        if isinstance(node, ast.Call):
            yield from unsafe_call(node)
        if isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield "trust_remote_code"


def unsafe_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    forbidden = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load"}
    if name in forbidden:
        yield name
    if name.startswith("yaml.") and name.endswith(("unsafe_load_all", "full_load", "full_load_all")):
        yield name
    if name == "torch.load" and keywords.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name == "yaml.load" and keywords.get("Loader") not in {"yaml.SafeLoader", "_Loader"}:
        yield "yaml.load without a safe loader"
    if name.endswith(".extractall") and "filter" not in keywords:
        yield "extractall without a filter"
    if name.endswith(".load") and keywords.get("allow_pickle") == "True":
        yield "load with allow_pickle"
    yield from (key for key in ("shell", "trust_remote_code") if keywords.get(key, "False") != "False")


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_source_runs_no_code_out_of_data(path: Path) -> None:
    assert list(unsafe_calls(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "archive.extractall(folder)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_check_finds_each_kind(code: str) -> None:
    assert len(list(unsafe_calls(ast.parse(code)))) >= 1


def test_the_check_accepts_what_is_safe() -> None:
    code = "model.eval(); torch.load(p, weights_only=True); yaml.safe_load(t); run(c, shell=False)"
    assert list(unsafe_calls(ast.parse(code))) == []


def test_the_yaml_loader_is_a_safe_one() -> None:
    import yaml

    from unival import yaml12

    assert issubclass(yaml12._Loader, yaml.SafeLoader)


def test_modules_stay_short() -> None:
    sizes = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    too_long = {name: size for name, size in sizes.items() if size > MAX_LINES and name not in LONG_FILES}
    assert not too_long, "split by concept, or list it in LONG_FILES with the reason"
    assert set(LONG_FILES) <= {name for name, size in sizes.items() if size > MAX_LINES}, "no longer long"


def test_no_module_is_a_drawer_for_leftovers() -> None:
    names = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert [relative(path) for path in SOURCES if path.name in names] == []


def test_large_files_are_package_data_only() -> None:
    large = [relative(path) for path in FILES if path.stat().st_size > 250_000]
    allowed = ("unival/assets/", "docs/", "notebooks/", "tests/parity/data/")
    assert [name for name in large if not name.startswith(allowed)] == []
