"""UnIVAL: one encoder-decoder for image, video, audio and language tasks.

`unival.pipeline("caption")("picture.png")` is the one-line use; `unival.load(path)` returns model and
processor. Both are imported on first use, because importing torch takes seconds and `unival --help` needs
none of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unival.predict import load, pipeline

__version__ = "0.1.0"
__all__ = ["__version__", "load", "pipeline"]

_LAZY = {"load", "pipeline"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from unival import predict

        return getattr(predict, name)
    raise AttributeError(f"module 'unival' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
