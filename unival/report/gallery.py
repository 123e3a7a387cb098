"""Pictures, clips and sounds of the test split with what the model said about them."""

from collections.abc import Mapping, Sequence
from typing import Any

from unival.report.folder import RunFolder
from unival.report.markup import Markup, join, note, tag
from unival.report.plot import boxes, waveform

GROUPS = (
    ("caption", "Describe a picture"),
    ("vqa", "Answer about a picture"),
    ("grounding", "Find in a picture"),
    ("video-caption", "Describe a clip"),
    ("video-vqa", "Answer about a clip"),
)


def gallery(run: RunFolder) -> Markup:
    """Show the samples of every task but those of sounds, which have a section of their own."""
    samples = run.json("samples/samples.json")
    groups = [(title, [s for s in samples if s["task"] == task]) for task, title in GROUPS]
    parts: list[Markup] = [
        note(
            "From the test split, chosen by position before anything was predicted. ",
            mark(True),
            " equals the reference (a box: IoU at least 0.5); ",
            mark(False),
            " does not, and the reference is given. Boxes: predicted solid, reference dashed. Clips play slowed down.",
        )
    ]
    for title, found in groups:
        if found:
            kind = "clips" if "clip" in title else "pictures large" if "Find" in title else "pictures"
            parts += [tag("h3", title), tag("div", *(card(run, sample) for sample in found), class_=kind)]
    return join(parts)


def sounds(run: RunFolder) -> Markup:
    """Show the sounds with players, or nothing if there are none."""
    found = [s for s in run.json("samples/samples.json") if s["task"] == "audio-caption"]
    return tag("div", *(card(run, sample) for sample in found), class_="sounds")


def card(run: RunFolder, sample: Mapping[str, Any]) -> Markup:
    """Show one sample: its medium, what was asked, what was said."""
    lines = [tag("p", sample["text"], class_="asked") if sample.get("text") else None]
    is_box = not isinstance(sample["reference"], str)
    if is_box:
        overlap = iou(sample["prediction"], sample["reference"])
        said = "no box was written" if overlap is None else f"IoU {overlap:.2f}"
        lines.append(tag("p", mark(sample["correct"]), " ", said, class_="said"))
    else:
        lines.append(tag("p", mark(sample["correct"]), " ", sample["prediction"] or "(nothing)", class_="said"))
        if not sample["correct"]:
            lines.append(tag("p", "reference: ", sample["reference"], class_="reference"))
    return tag("article", medium(run, sample), tag("div", *lines))


def medium(run: RunFolder, sample: Mapping[str, Any]) -> Markup:
    """Show a picture with its boxes, a clip with its frames, or a sound with its waveform."""
    name = sample["file"]
    if name.endswith(".wav"):
        player = tag("audio", controls=True, preload="metadata", src=run.uri(name))
        return tag("div", waveform(run.path(name)), player)
    if name.endswith(".mp4"):
        return clip(run, name, sample.get("frames") or [])
    width, height = sample["width"], sample["height"]
    overlay = None
    if not isinstance(sample["reference"], str):
        overlay = boxes(width, height, sample["prediction"], sample["reference"])
    picture = tag("img", src=run.uri(name), alt="", width=width, height=height)
    return tag("div", picture, overlay, class_="picture")


def clip(run: RunFolder, name: str, frames: Sequence[str]) -> Markup:
    """Show the decoded frames as a strip and in motion; the file itself only where there are none.

    Moving by style sheet needs no codec and no script, stops for readers who ask for less motion, and prints.
    """
    if not frames:
        return tag("video", controls=True, loop=True, muted=True, playsinline=True, src=run.uri(name))
    uri = run.strip_uri(list(frames))
    num = len(frames)
    film = f"width: {100 * num}%; --shift: {-100 * (num - 1) / num:.4f}%; animation-timing-function: steps({num - 1})"
    moving = tag("div", tag("img", src=uri, alt="", style=film if num > 1 else None), class_="moving")
    strip = tag("img", src=uri, alt=f"{num} frames", class_="film")
    return tag("div", moving, strip, class_="clip")


def iou(box: Sequence[float] | None, other: Sequence[float]) -> float | None:
    """Return the intersection over union of two boxes, or None without the first."""
    if box is None:
        return None
    sizes = [max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1]) for b in (box, other)]
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / union if (union := sum(sizes) - shared) else 0.0


def mark(is_right: object) -> Markup:
    """Return a tick or a cross."""
    if is_right:
        return tag("b", "✓", class_="right", title="equals the reference")
    return tag("b", "✗", class_="wrong", title="differs from the reference")
