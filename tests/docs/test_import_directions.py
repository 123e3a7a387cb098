"""Imports point one way: a module may import its own level and those above it in the table, never below."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A name stands for a module or a whole sub-package; the longest one that fits decides.
LEVELS: dict[str, list[set[str]]] = {
    "unival": [
        {"errors", "atomic", "yaml12", "config_problem", "config", "schema", "sections", "batch", "log", "memory"}
        | {"device", "options", "registry", "evaluation.submission"}
        | {"training.distributed", "training.random_state", "training.stop"},
        {"pickles", "training", "evaluation", "planning", "tiny"},  # the last four: their empty packages
        {"data", "model", "metrics", "generate", "weights", "codec", "training.muon"},
        {
            "tasks",
            "objectives",
            "rewards",
            "training.optim",
            "checkpoint",
            "training.ema",
            "training.losses",
            "training.saving",
        },
        {"data.mixture", "data.command"},  # draws batches of several tasks
        {
            "evaluate",
            "evaluation.answering",
            "evaluation.checks",
            "evaluation.loading",
            "evaluation.result",
            "evaluation.predictions",
            "evaluation.provenance",
            "training.building",
            "training.validation",
            "training.sketch",
            "training.check",
            "training.check_objective",
            "training.check_resume",
            "planning.passes",
            "training.run_folder",
            "planning.plan",
        }
        | {"planning.cost", "planning.table", "tiny.packed"},
        {
            "train",
            "training.memory",
            "predict",
            "draw",
            "soup_evaluator",
            "tiny.ship",
            "tiny.ship_pictures",
            "convert",
            "tiny.pretrain_encoder",
            "tiny.align_names",
        },
        {"report"},
        {"demo"},
        {"cli"},
        {"__main__"},
    ],
    "soups": [
        {"digests", "errors", "state", "points", "pareto", "evaluator", "labels"}
        | {"metric_names", "modules", "theory", "sources", "batch_norm", "ties"}
        | {"engine", "engine.arrays", "engine.jobs", "engine.output", "engine.processes", "recipes"}
        | {"recipes.coefficients", "search"},
        {"methods"},
        {"recipes.policies", "recipes.compute", "recipes.chosen", "results"},
        {
            "adapters",
            "agreement",
            "compare",
            "figures",
            "front",
            "interactive",
            "merge",
            "plot",
            "plot_panels",
            "engine.stream",
        },
        {"evaluators", "engine.live", "recipes.mergekit", "recipes.file", "scoring", "shares", "sweep"},
        {"diff", "statistics", "search.greedy", "search.learn", "path", "search.pick", "search.sampling"},
        {"study"},
        {"commands", "trainers"},
        {"cli"},
        {"__main__"},
    ],
}


def modules(package: str) -> list[tuple[str, Path]]:
    """List (dotted name without the package, file); a package's `__init__` has the package's own name."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = list(path.relative_to(ROOT / package).with_suffix("").parts)
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imported(path: Path) -> Iterator[str]:
    """Yield every absolute dotted name that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # The imported name may be a module itself: `from unival.data import world`.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level_of(package: str, module: str) -> int | None:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        for level, names in enumerate(LEVELS[package]):
            if name in names:
                return level
    return None


def inner_imports(package: str, path: Path) -> set[str]:
    prefix = f"{package}."
    return {name.removeprefix(prefix) for name in imported(path) if name.startswith(prefix)}


ALL = [(package, name, path) for package in LEVELS for name, path in modules(package) if name]


@pytest.mark.parametrize(("package", "name", "path"), ALL, ids=[f"{p}.{n}" for p, n, _ in ALL])
def test_a_module_imports_only_its_own_level_and_those_above(package: str, name: str, path: Path) -> None:
    level = level_of(package, name)
    assert level is not None, f"{package}.{name} stands in no level: add it to LEVELS"
    for other in inner_imports(package, path):
        other_level = level_of(package, other)
        if other_level is not None:  # None: a name of the package itself, such as __version__
            assert other_level <= level, f"{package}.{name} imports {package}.{other}, which is above it"


@pytest.mark.parametrize(("package", "other"), [("unival", "soups"), ("soups", "unival")])
def test_the_two_packages_never_import_each_other(package: str, other: str) -> None:
    for name, path in modules(package):
        names = {name.split(".")[0] for name in imported(path)}
        assert not names & {other, "preprocessing", "tests"}, f"{package}.{name} imports one of {names}"


def test_preprocessing_uses_only_the_data_side_of_the_package() -> None:
    for path in sorted((ROOT / "preprocessing").glob("*.py")):
        ours = {name for name in imported(path) if name.split(".")[0] in {"unival", "soups"}}
        allowed = ("unival.data.", "unival.errors.", "unival.atomic.", "unival.metrics.", "unival.pickles.")
        assert all(name.startswith(allowed) for name in ours), f"{path}: {ours}"


def test_no_command_line_imports_a_heavy_package_at_its_top() -> None:
    heavy = {"torch", "transformers", "matplotlib", "timm", "torchvision", "torchaudio", "numpy"}
    commands = (ROOT / "soups" / "commands").glob("*.py")
    for path in (ROOT / "unival" / "cli.py", ROOT / "soups" / "cli.py", *commands):
        if path.exists():
            body = ast.parse(path.read_text(encoding="utf-8")).body
            top = {a.name.split(".")[0] for n in body if isinstance(n, ast.Import) for a in n.names}
            top |= {(n.module or "").split(".")[0] for n in body if isinstance(n, ast.ImportFrom)}
            assert not top & heavy, path
