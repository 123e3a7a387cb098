"""The run folder of a demo as the report reads it: results, curves and media; nothing else is opened."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from unival.report.markup import Markup

MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml", ".wav": "audio/wav", ".mp4": "video/mp4"}


class MissingError(Exception):
    """A file of a step that has not run, or did not finish."""


class RunFolder:
    """Reads files below one folder, by relative name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Return the path of a file.

        Raises:
            MissingError: If there is none, or the name leads out of the folder.
        """
        path = self.root / name
        if not path.is_file() or not path.resolve().is_relative_to(self.root.resolve()):
            raise MissingError(f"{name} is missing")
        return path

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        try:
            return bool(self.path(name))
        except MissingError:
            return False

    def json(self, name: str) -> Any:
        """Read a JSON document.

        Raises:
            MissingError: If there is none, or the step was stopped while it wrote it.
        """
        try:
            return json.loads(self.path(name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise MissingError(f"{name} is not complete") from error

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Read JSON lines; a torn last line is not there yet.

        Raises:
            MissingError: If there is no complete line.
        """
        rows = []
        for line in self.path(name).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        if not rows:
            raise MissingError(f"{name} has no complete line")
        return rows

    def uri(self, name: str) -> Markup:
        """Return a file as a data URI."""
        path = self.path(name)
        return data_uri(path.read_bytes(), MEDIA_TYPES[path.suffix])

    def strip_uri(self, names: list[str]) -> Markup:
        """Return pictures of equal size side by side, as one PNG in a data URI."""
        frames = [Image.open(self.path(name)).convert("RGB") for name in names]
        width, height = frames[0].size
        strip = Image.new("RGB", (width * len(frames), height))
        for index, frame in enumerate(frames):
            strip.paste(frame.resize((width, height)), (index * width, 0))
        buffer = BytesIO()
        strip.save(buffer, "PNG", optimize=True)
        return data_uri(buffer.getvalue(), "image/png")


def data_uri(content: bytes, media_type: str) -> Markup:
    """Return bytes as a data URI, which needs no escapes and is never cut."""
    return Markup(f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}")
