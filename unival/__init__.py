"""UnIVAL: one encoder-decoder for image, video, audio and language tasks.

`unival.pipeline("caption")("picture.png")` is the one-line use; `unival.load(path)` returns model and
processor; `unival.intervals(scores)` is a table of means with bootstrap intervals. They are imported on first
use, because importing torch takes seconds and `unival --help` needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unival.metrics.table import intervals
    from unival.predict import load, pipeline

__version__ = "0.1.0"
__all__ = ["__version__", "intervals", "load", "pipeline"]

_LAZY = {"intervals": "unival.metrics.table", "load": "unival.predict", "pipeline": "unival.predict"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'unival' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
