"""`index.html` of a demo: one file that shows what was run, what came out, and how sure that is.

It is made from the run folder alone, needs no model, and can be made again at any time, also of a demo that was
stopped: a part whose files are missing says so.
"""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unival.report import gallery, sections
from unival.report.folder import MissingError, RunFolder
from unival.report.markup import Markup, join, note, page, table, tag, write_atomically
from unival.report.plot import bar

__all__ = ["write_report"]

Part = Callable[[RunFolder], Markup]
SECTIONS: tuple[tuple[str, str, tuple[Part, ...]], ...] = (
    ("samples", "What it sees", (gallery.gallery,)),
    ("metrics", "How often it is right", (sections.metrics,)),
    ("curriculum", "A curriculum from scratch", (sections.pretraining,)),
    ("sounds", "Learning sounds", (sections.sound_learning, gallery.sounds, sections.sound_curve)),
    ("front", "Two rewards, one front", (sections.rewards, sections.gains, sections.front, sections.along)),
    ("styles", "A style nobody trained on", (sections.styles,)),
)
TRAINED = ("pretrain", "audio", "detail", "brevity", "style_fluent", "style_noto")
SWEPT = ("sweep", "ood")


def write_report(out: Path) -> Path:
    """Write `out/index.html` from the files in `out`; return its path.

    The page is one file: it loads nothing, holds no script, and all text of the run is escaped.
    """
    run = RunFolder(out)
    body = [tag("header", _title(), part(run, summary), part(run, sections.headline), _contents())]
    for anchor, title, parts in SECTIONS:
        body.append(tag("section", tag("h2", title), *(part(run, p) for p in parts), id=anchor))
    body.append(tag("section", tag("h2", "Do it again"), part(run, times), part(run, versions), id="again"))
    target = out / "index.html"
    write_atomically(target, page("UnIVAL demo", *body))
    return target


def part(run: RunFolder, draw: Part) -> Markup:
    """Draw a part of the page, or say in its place why it is not there.

    A run folder is what other programs and an interrupted demo left behind, so unexpected content costs its own
    part, is named on the page, and leaves the others alone.
    """
    try:
        return draw(run)
    except MissingError as error:
        return note(f"Nothing to show yet: {error}.")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
        return note(f"Not shown, the files of this part are not as expected ({draw.__name__}: {error!r}).")


def _title() -> Markup:
    return join([tag("p", "unival demo", class_="kicker"), tag("h1", "From one small model to a Pareto front")])


def _contents() -> Markup:
    links = [tag("a", title, href=f"#{anchor}") for anchor, title, _ in SECTIONS]
    return tag("nav", *links, tag("a", "Do it again", href="#again"))


def summary(run: RunFolder) -> Markup:
    """Say in three lines what this is, how long it took, and what the intervals mean."""
    first = (
        "A small unified model describes pictures and clips, answers questions, finds things and learns sounds; "
        "specialists for two rewards and two art styles are fine-tuned from it and their weights averaged."
    )
    third = (
        "All numbers are from held-out rows of a generated world. Brackets are 95 % intervals over test samples: "
        "they cover neither another training seed nor photographs."
    )
    second: Markup | None = None
    if run.has("times.json"):
        content = run.json("times.json")
        open_steps = [row["title"] for row in content["steps"] if not row.get("complete", True)]
        versions = run.json("versions.json") if run.has("versions.json") else {}
        machine = ", ".join(versions[name] for name in ("machine", "threads") if name in versions)
        took = f"Run with seed {content.get('seed', 'unknown')}" + (f" on {machine}," if machine else "") + " in "
        missing = f"; stopped before the end of: {', '.join(open_steps)}" if open_steps else ""
        second = tag("p", took, tag("b", duration(content["total_seconds"])), missing, ".")
    return tag("div", tag("p", first), second, tag("p", third), class_="lede")


def times(run: RunFolder) -> Markup:
    """Show the time of each step, and the command that runs it alone."""
    content = run.json("times.json")
    longest = max(row["seconds"] for row in content["steps"])
    rows = []
    for row in content["steps"]:
        state = "" if row.get("complete", True) else " (not complete)"
        rows.append((row["title"], duration(row["seconds"]) + state, bar(row["seconds"] / longest)))
    rows.append((tag("b", "In all"), tag("b", duration(content["total_seconds"])), ""))
    commands = [(row["title"], commands_of(run, row["name"])) for row in content["steps"]]
    lines = [join(["# ", title, "\n", "\n".join(own)]) for title, own in commands if own]
    return join(
        [
            table(("", "time", ""), rows, "numbers"),
            tag("h3", "Each step alone"),
            tag("pre", Markup("\n\n".join(lines)), class_="commands"),
            note("Options of a configuration are changed on the command line, for example seed=2 out=runs/seed2."),
        ]
    )


def commands_of(run: RunFolder, name: str) -> list[str]:
    """Return the command lines of a step, in their order; none if it has none of its own."""
    if name == "understand":
        return ["unival evaluate configs/demo/understand.yaml --model unival-tiny -o runs/demo/understand"]
    if name in TRAINED:
        return [f"unival train configs/demo/{name}.yaml"]
    if name not in SWEPT or not run.has(f"{name}/sweep.json"):
        return []
    scored = [_sweep(run, start) for start in (f"{name}_start",) if run.has(f"{start}/sweep.json")]
    return [*scored, _sweep(run, name), *_front(run, name)]


def _sweep(run: RunFolder, name: str) -> str:
    manifest: dict[str, Any] = run.json(f"{name}/sweep.json")
    words = ["soups", "sweep", *(model["path"] for model in manifest["checkpoints"].values())]
    for checkpoint in manifest["checkpoints"]:
        words += ["--name", checkpoint]
    if len(manifest["checkpoints"]) > 1:
        words += ["--points", str(len(run.rows(f"{name}/results.jsonl")))]
    words += ["--evaluator", manifest["evaluator"]]
    for key, value in manifest["args"].items():
        words += ["--arg", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join([*words, "-o", (run.root / name).as_posix()])


def _front(run: RunFolder, name: str) -> list[str]:
    """Return the command that draws the front of a sweep, if one was drawn."""
    if not run.has(f"{name}/front.json"):
        return []
    content = run.json(f"{name}/front.json")
    words = ["soups", "front", (run.root / name).as_posix(), "--x", content["x"], "--y", content["y"]]
    if content.get("init"):
        words += ["--init", (run.root / f"{name}_start").as_posix()]
    return [shlex.join(words)]


def versions(run: RunFolder) -> Markup:
    """Show what the numbers depend on."""
    content = dict(run.json("versions.json"))
    if run.has("times.json"):
        content["seed"] = run.json("times.json").get("seed", "unknown")
    pairs = [tag("div", tag("dt", key), tag("dd", value)) for key, value in content.items()]
    return join([tag("h3", "Versions"), tag("dl", *pairs)])


def duration(seconds: float) -> str:
    """Return a time as a reader would say it."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
