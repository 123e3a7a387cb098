"""Execute the notebooks and store them with their outputs: `make notebooks`, or `python notebooks/render.py vqa audio`.

Reads `NAME.py` (jupytext, percent format), writes `NAME.ipynb`. Needs the extra `notebooks`.
"""

import base64
import io
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent


def main(names: list[str]) -> None:
    """Render the named notebooks, or all."""
    for path in sorted(FOLDER.glob("*.py")):
        if path.name != Path(__file__).name and (not names or path.stem in names):
            wall, processor = time.monotonic(), processor_seconds()
            render(path)
            wall, processor = time.monotonic() - wall, processor_seconds() - processor
            print(f"{path.stem}.ipynb: {wall:.0f} s, {processor:.0f} s of processor time", flush=True)


def render(path: Path) -> None:
    """Execute one notebook in its folder; the old file stays when a cell fails."""
    notebook = jupytext.read(path)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=None, startup_timeout=600, resources=place).execute()
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"{path.stem}-{index}"  # the same at every rendering
        if cell.cell_type == "code":
            cell["outputs"] = [small(output) for output in cell.outputs if not is_progress(output)]
            cell["metadata"].pop("execution", None)  # times of day
    temporary = path.with_suffix(".ipynb.tmp")
    nbformat.write(notebook, temporary)
    temporary.replace(path.with_suffix(".ipynb"))


def small(output: Any) -> Any:
    """Store a picture with 256 colours: a third of the size, which stays in the history for ever."""
    if "image/png" in output.get("data", {}):
        buffer = io.BytesIO()
        picture = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))).convert("RGB")
        picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        output["data"]["image/png"] = base64.b64encode(buffer.getvalue()).decode()
    return output


def processor_seconds() -> float:
    """Return the time that ended kernels have computed, which a busy machine does not change much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def is_progress(output: Any) -> bool:
    """Return whether an output is what goes to stderr: progress and the like are no results."""
    return output.output_type == "stream" and output.name == "stderr"


if __name__ == "__main__":
    main(sys.argv[1:])
