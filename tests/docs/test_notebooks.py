"""Every notebook is short, runs from its first cell to its last, and is stored with the outputs of its own cells."""

import ast
import base64
import importlib.util
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unival.checkpoint import BUILT_IN_ENCODERS

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SLOW = ("merging", "rewarded_soup", "unseen_style")  # ten seconds each; what they call is tested elsewhere
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "render")
MAX_LINES = 30
# Two steps of one row, so that a run takes seconds: what the numbers become is not tested here.
BRIEFLY = ["stages.0.steps=2", "stages.0.groups.0.rows=2", "workers=0", "stages.0.optim.warmup_steps=1"]
REINFORCED = [*BRIEFLY, "stages.0.objective.args.samples=2"]
SMALL: dict[str, dict[str, Any]] = {
    "captioning": {"NUM_ROWS": 12},
    "vqa": {"NUM_ROWS": 16},
    "grounding": {"NUM_ROWS": 9},
    "video": {"NUM_CAPTIONS": 4, "NUM_QUESTIONS": 8},
    "audio": {"NUM_ROWS": 6, "OVERRIDES": BRIEFLY},
    "image_generation": {"NUM_SAMPLES": 1, "THINGS": ("a pear", "a bus"), "COLOURS": ("blue",)},
    "merging": {"NUM_ROWS": 4, "NUM_POINTS": 3, "OVERRIDES": BRIEFLY},
    "rewarded_soup": {"NUM_ROWS": 4, "NUM_POINTS": 3, "OVERRIDES": REINFORCED},
    "unseen_style": {"NUM_ROWS": 4, "OVERRIDES": BRIEFLY},
}


def cells(name: str) -> Iterator[tuple[str, str]]:
    """Yield the head and the body of every cell of a percent script."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = cell.partition("\n")
        yield head.strip(), body.strip()


def code_cells(name: str) -> list[tuple[str, str]]:
    return [(head, body) for head, body in cells(name) if "[markdown]" not in head]


def run(name: str, parameters: dict[str, Any]) -> list[Any]:
    """Run all cells in one namespace, parameters replaced after their cell; return what a notebook would show."""
    import matplotlib.pyplot as plt

    namespace: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for head, body in code_cells(name):
        tree = ast.parse(body)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), namespace)
        if "parameters" in head:
            assert parameters.keys() <= namespace.keys()
            namespace |= parameters
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
            shown += [value] if value is not None else []
            if hasattr(value, "_repr_png_"):
                assert value._repr_png_().startswith(b"\x89PNG")
        shown += [plt.figure(number) for number in plt.get_fignums()]
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")
    return shown


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NAMES]
)
def test_a_notebook_runs_on_few_rows_and_shows_a_picture_and_a_table(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "audio" and not BUILT_IN_ENCODERS["unival-tiny-audio"].is_file():
        pytest.skip("this package has no audio encoder")
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(FOLDER)  # as Jupyter does
    num_threads = torch.get_num_threads()
    writes = any("OUT" in body for _, body in code_cells(name))
    try:
        shown = run(name, SMALL[name] | ({"OUT": str(tmp_path / "out")} if writes else {}))
    finally:
        torch.set_num_threads(num_threads)
    tables = [item for item in shown if hasattr(item, "_repr_markdown_")]
    assert tables
    assert len(tables) < len(shown)  # the others are pictures
    if name == "video":
        assert_frames_are_evenly_spaced(next(item for item in shown if hasattr(item, "axes")))
    for table in tables:
        assert all(row.low <= row.mean <= row.high for row in table.rows.values())
        assert all(size > 0 for size in table.sizes.values())


def assert_frames_are_evenly_spaced(figure: Any) -> None:
    """Fail where a title has moved the frames of a clip apart."""
    lefts = np.array([axis.get_position().x0 for axis in figure.axes]).reshape(-1, 8)
    assert np.diff(lefts, axis=1) == pytest.approx(np.diff(lefts).mean(), rel=0.01)


def test_a_rendered_picture_keeps_the_colours_of_its_text() -> None:
    pytest.importorskip("jupytext")
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("render", FOLDER / "render.py")
    assert spec is not None
    assert spec.loader is not None
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    warm = np.linspace((0, 0, 4), (252, 253, 191), 300 * 400).reshape(300, 400, 3)
    noise = np.random.default_rng(0).normal(0, 6, warm.shape)
    pixels = np.clip(warm + noise, 0, 255).astype(np.uint8)
    texts = {"darkgreen": (0, 100, 0), "firebrick": (178, 34, 34), "grey": (128, 128, 128), "black": (0, 0, 0)}
    for row, colour in enumerate(texts.values()):
        pixels[10 * row, :120] = colour
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    stored = render.small({"data": {"image/png": base64.b64encode(buffer.getvalue()).decode()}})["data"]["image/png"]
    image = Image.open(io.BytesIO(base64.b64decode(stored)))
    kept = np.asarray(image.convert("RGB"))
    assert image.mode == "P"
    assert len(stored) < 4 / 3 * len(buffer.getvalue()) / 2
    for row, (name, colour) in enumerate(texts.items()):
        assert tuple(kept[10 * row, 60]) == colour, name
    assert np.abs(kept.astype(int) - pixels).mean() < 6

    few = Image.fromarray(np.zeros((4, 4, 3), np.uint8) + np.uint8(7))
    assert np.array_equal(np.asarray(render.with_palette(few).convert("RGB")), np.asarray(few))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_at_most_thirty_lines_of_code(name: str) -> None:
    lines = [line for _, body in code_cells(name) for line in body.splitlines() if line.strip()]
    assert len([line for line in lines if not line.lstrip().startswith("#")]) <= MAX_LINES


@pytest.mark.parametrize("name", NAMES)
def test_the_rendered_notebook_has_the_cells_of_its_source_and_no_error(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    if not path.is_file():
        pytest.skip("not rendered yet: make notebooks")
    rendered = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]).strip() for cell in rendered if cell["cell_type"] == "code"]
    assert code == [body for _, body in code_cells(name)], "run make notebooks"
    outputs = [output for cell in rendered if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    kinds = {kind for output in outputs for kind in output.get("data", ())}
    assert {"image/png", "text/markdown"} <= kinds


def test_every_notebook_has_small_settings_and_a_row_in_the_readme() -> None:
    assert set(SMALL) == set(NAMES)
    listed = re.findall(r"^\| \[(\w+)\]\(\1\.py\)", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == NAMES
