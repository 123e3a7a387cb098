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
import numpy as np
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
NUM_COMMON = 192  # colours of a palette that are chosen by counting pixels


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
        with_palette(picture).save(buffer, "PNG", optimize=True)
        output["data"]["image/png"] = base64.b64encode(buffer.getvalue()).decode()
    return output


def with_palette(picture: Image.Image) -> Image.Image:
    """Return an RGB picture with at most 256 colours, of which a quarter is kept for what is rare.

    A palette made by counting pixels goes to photographs, and the few pixels of a coloured title get the nearest of
    their colours. So the last ones are, in turn, the colours of the picture that lose most: as a text is flat, they
    are those of texts before the shades of a photograph.
    """
    pixels = np.asarray(picture).reshape(-1, 3)
    colours, place, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    common = picture.quantize(NUM_COMMON, dither=Image.Dither.NONE).getpalette() or []
    palette = np.array(common[: 3 * NUM_COMMON], np.uint8).reshape(-1, 3)
    nearest, errors = np.zeros(len(colours), np.uint8), np.full(len(colours), np.inf)
    for index in range(256):
        if index >= len(palette):
            if not errors.any():
                break
            palette = np.concatenate([palette, colours[[(errors * counts).argmax()]]])
        distances = ((colours.astype(int) - palette[index]) ** 2).sum(axis=1)
        nearest[distances < errors] = index
        errors = np.minimum(errors, distances)
    small = Image.fromarray(nearest[place.reshape(picture.height, picture.width)])
    small.putpalette(palette.tobytes())
    return small


def processor_seconds() -> float:
    """Return the time that ended kernels have computed, which a busy machine does not change much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def is_progress(output: Any) -> bool:
    """Return whether an output is what goes to stderr: progress and the like are no results."""
    return output.output_type == "stream" and output.name == "stderr"


if __name__ == "__main__":
    main(sys.argv[1:])
