"""One-line inference: `unival.pipeline("caption")("picture.png")`."""

import glob
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from pydantic import ValidationError

from unival.atomic import replacing
from unival.checkpoint import load_model as load
from unival.config_problem import explain_validation
from unival.data.bad_rows import decoding
from unival.data.image import load_image
from unival.data.media import files_of
from unival.data.source import Source, open_source
from unival.device import find_device
from unival.errors import UserError
from unival.evaluate import Evaluation, evaluate
from unival.evaluation.answering import generate
from unival.registry import is_own
from unival.schema import SourceConfig
from unival.tasks import PREDICT_TASKS, check_predicted
from unival.tasks.base import get_task

__all__ = ["Pipeline", "draw_box", "drawing_paths", "load", "pipeline"]

TEXT_FIELD = {"vqa": "question", "grounding": "text", "entailment": "text"}
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
BATCH_SIZE = 32


class Pipeline:
    """A task bound to a model. Call it with one medium or several; see `pipeline`."""

    def __init__(
        self,
        task: str,
        model: str | Path,
        num_beams: int,
        candidates: Sequence[str] | None = None,
        device: str = "auto",
    ) -> None:
        check_predicted(task)
        if not isinstance(num_beams, int) or num_beams < 1:
            raise UserError(f"num_beams is {num_beams!r}", fix="give a whole number; 1 is greedy")
        place = find_device(device)
        name, modality = (task, get_task(task).modality) if is_own(task) else PREDICT_TASKS[task]
        self.task_name = name
        self.name, self.num_beams = task, num_beams
        self.model, self.processor = load(model, place)
        if modality != "text" and getattr(self.model.config, f"{modality}_encoder") is None:
            raise UserError(
                f"the model cannot read {modality}: it has no {modality} encoder",
                where=str(model),
                fix=f"fine-tune one first, for example with configs/demo/{modality}.yaml, and give --model",
            )
        args: dict[str, Any] = {"modality": modality}
        if candidates is not None:
            args["candidates"] = candidates
        if name == "grounding":
            args["num_bins"] = self.processor.num_bins
        self.task = get_task(name, args)
        self.text_field = TEXT_FIELD.get(name)
        self.takes_text = self.text_field is not None or is_own(task)
        self.draws_boxes = name == "grounding"

    def __call__(self, media: Any, text: str | Sequence[str] | None = None) -> Any:
        """Predict for one medium (path, bytes, PIL image, array), or for a list of them.

        Args:
            media: What to look at or listen to; a pattern such as `pictures/*.png` stands for a list.
            text: The question of `vqa`, the expression of `grounding`, the statement of `entailment`: one for all
                media, or a list with one for each. A task of your own finds it as `text` and `question`.

        Returns:
            `{"file", "task", "prediction"}` for one medium, a list of them for a list. The prediction is text, or for
            grounding a box `[x0, y0, x1, y1]` in pixels, or None if the model wrote no box.

        Raises:
            UserError: If a medium is none or cannot be read, or the task needs a text and none is given.
        """
        if isinstance(media, str) and glob.has_magic(media) and not os.path.lexists(media):
            media = files_of([media])
        is_one = isinstance(media, str | bytes | bytearray | memoryview) or not isinstance(media, Sequence)
        items = [media] if is_one else list(media)
        if text is not None and not self.takes_text:
            raise UserError(f"{self.name} takes no text", fix="leave it out; vqa, grounding and entailment take one")
        texts = [""] * len(items) if text is None and not self.text_field else self._texts(text, len(items))
        results = []
        for start in range(0, len(items), BATCH_SIZE):
            part = range(start, min(start + BATCH_SIZE, len(items)))
            records = [self._record(items[index], texts[index], index) for index in part]
            examples = [replace(self.task.example(record), where=record["where"]) for record in records]
            batch = self.processor.collate(examples)
            answers = generate(self.model, self.processor, self.task, batch.inputs, self.num_beams)
            for record, answer in zip(records, answers, strict=True):
                prediction = self.task.parse(answer, record)
                results.append({"file": record["file"], "task": self.name, "prediction": prediction})
        return results[0] if is_one else results

    def rows(self, **source: Any) -> Source:
        """Open rows of this task: of the embedded world with `rows(world="test", limit=300)`, or a data set.

        Args:
            source: What a configuration says under `source` (`docs/data.md`).

        Raises:
            UserError: If an argument is wrong, there is no such data set, or the world has no such rows.
        """
        try:
            config = SourceConfig.model_validate(source)
        except ValidationError as error:
            raise explain_validation(error, source, SourceConfig, {}, "rows") from None
        return open_source(config, self.task_name, self.task.modality)

    def evaluate(self, rows: Source, batch_size: int = BATCH_SIZE) -> Evaluation:
        """Predict for all rows and score each: `unival.intervals(pipeline.evaluate(rows).scores)` is the table."""
        description = f"evaluate {self.name}"
        return evaluate(self.model, self.processor, self.task, rows, batch_size, self.num_beams, None, description)

    def _texts(self, text: Any, number: int) -> list[str]:
        """Return the text of each medium."""
        texts = list(text) if isinstance(text, list | tuple) else [text] * number
        fix = (
            f'give --text "..." (or text="...") with the {self.text_field or "text"}, or a list with one for each input'
        )
        if text is None or any(isinstance(each, str) and not each.strip() for each in texts):
            raise UserError(f"{self.name} needs a text", fix=fix)
        wrong = next((each for each in texts if not isinstance(each, str)), "")
        if not isinstance(wrong, str):
            raise UserError(f"a text must be a str, got {wrong!r}", fix=fix)
        if len(texts) != number:
            raise UserError(f"{len(texts)} texts for {number} inputs", fix=fix)
        if any("\ud800" <= letter <= "\udfff" for each in texts for letter in each):  # bytes of a shell, not UTF-8
            raise UserError("the text is not valid Unicode", fix="write it in UTF-8")
        return texts

    def _record(self, item: Any, text: str, index: int) -> dict[str, Any]:
        is_path = isinstance(item, str | Path)
        label = str(item) if is_path else f"input {index}"
        record: dict[str, Any] = {"uid": f"{index}:{label}", "file": label, self.task.modality: item}
        record["where"] = "" if is_path else label  # errors name a path anyway
        if self.task.modality == "image":
            with decoding(record["where"]):
                picture = load_image(item)
            record |= {"image": picture, "width": picture.width, "height": picture.height}
        if self.text_field:
            record[self.text_field] = text
        elif text:
            record |= {"text": text, "question": text}
        return record


def pipeline(
    task: str,
    model: str | Path = "unival-tiny",
    num_beams: int = 1,
    candidates: Sequence[str] | None = None,
    device: str = "auto",
) -> Pipeline:
    """Return a callable for a task: `caption`, `vqa`, `grounding`, `entailment`, `video-caption`, `audio-caption`, ...

    Args:
        task: What to do with a medium.
        model: A model folder, or the name of a built-in model.
        num_beams: Of the search; 1 is greedy.
        candidates: The only texts that may be predicted; by default any, for `entailment` no, yes and maybe.
        device: Where to compute: `auto` is a GPU when there is one; or `cpu`, `cuda`, `cuda:1`.

    Example:
        >>> import unival
        >>> describe = unival.pipeline("caption")  # doctest: +SKIP
        >>> describe("picture.png")["prediction"]  # doctest: +SKIP
        'a red apple above a cat'
    """
    return Pipeline(task, model, num_beams, candidates, device)


def drawing_paths(pictures: Sequence[str], out: Path | None) -> list[Path]:
    """Return where the drawing of each picture goes: no two into one file, and none over a picture that was given.

    Args:
        pictures: Paths.
        out: A PNG file, or a folder when there are several pictures; by default `<name>.box.png` beside the picture.

    Raises:
        UserError: Nothing can be written there. (Found out before hours of predictions.)
    """
    taken = {Path(picture).resolve() for picture in pictures}
    if out is not None and len(pictures) > 1 and out.suffix.lower() in PICTURE_SUFFIXES and not out.is_dir():
        raise UserError(f"one drawing for {len(pictures)} pictures", str(out), "give --draw a folder")
    if out is not None:
        try:
            is_file = len(pictures) == 1 and out.suffix != "" and not out.is_dir()
            folder = out.parent if is_file else out
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            fix = "--draw takes a folder, or for a single picture a PNG file"
            raise UserError(f"cannot write the drawing: {error.strerror}", str(out), fix) from None
        if is_file and out.resolve() in taken:
            raise UserError("the drawing would replace the picture", str(out), "give --draw another name")
        if is_file:
            return [out]
    targets, numbers = [], Counter[Path]()
    for picture in map(Path, pictures):
        first = target = (out or picture.parent) / f"{picture.stem}.box.png"
        while target.resolve() in taken:  # d1/x.png and d2/x.png, x.png and x.jpg
            numbers[first] += 1
            target = first.with_name(f"{picture.stem}.box-{numbers[first] + 1}.png")
        taken.add(target.resolve())
        targets.append(target)
    return targets


def draw_box(path: str, box: Sequence[float], label: str, target: Path) -> None:
    """Draw a box on a picture and save it as PNG.

    Args:
        path: The picture.
        box: x0, y0, x1, y1 in its pixels.
        label: Written above the box.
        target: The file to write.

    Raises:
        UserError: It cannot be written.
    """
    picture = load_image(path)
    scale = max(1, round(384 / max(picture.size)))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    x0, y0, x1, y1 = (c * scale for c in box)
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    pen.rectangle((x0, y0, x1, y1), outline=(220, 30, 60), width=max(2, picture.width // 160))
    pen.text((x0 + 4, max(y0 - 14, 2)), label, fill=(220, 30, 60))
    try:
        with replacing(target, "wb") as file:
            picture.save(file, "PNG")
    except OSError as error:
        what = f"cannot write the drawing: {error.strerror or error}"
        raise UserError(what, str(target), "name a place with --draw") from None
