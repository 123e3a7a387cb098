"""Rows of an evaluation whose medium cannot be decoded, or whose decoder hangs."""

import inspect
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from unival.data.bad_rows import BadRow
from unival.data.media import open_media
from unival.errors import UserError
from unival.evaluate import evaluate_all, known_settings
from unival.evaluation.loading import load
from unival.evaluation.provenance import files_of
from unival.model.processing import UnivalProcessor
from unival.schema import EvaluationConfig
from unival.tasks.base import get_task

HANGS = np.full((1, 1, 3), 7, np.uint8)


class Rows:
    """Questions about pictures; the third has none."""

    variants = 1

    def __init__(self, third: Any = b"no picture") -> None:
        self.third = third

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.third if index == 2 else tiny.picture(index)
        return {"uid": str(index), "image": image, "question": "what?", "answers": ["cat"]}

    def where(self, index: int) -> str:
        return f"rows:{index}"


class Slow(UnivalProcessor):
    """A processor with a decoder that hangs."""

    def image(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        if source is HANGS or (isinstance(source, np.ndarray) and source.shape == HANGS.shape):
            time.sleep(60)
        return super().image(source, *args, **kwargs)


def loaded(rows: Rows, processor: UnivalProcessor | None = None, **settings: Any) -> list[Any]:
    return list(load(processor or tiny.processor(), get_task("vqa"), rows, [[0, 1, 2], [3, 4]], **settings))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_bad_row_ends_it_by_default_and_is_named(workers: int) -> None:
    with pytest.raises(BadRow, match="rows:2"):
        loaded(Rows(), workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_so_many_rows_may_be_bad(workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = loaded(Rows(), workers=workers, max_bad=1)
    assert list(first.bad) == [2]
    assert [example.uid for example in first.batch.examples] == ["0", "1"]
    assert second.bad == {}
    assert "no prediction: " in capfd.readouterr().err


def test_one_bad_row_more_ends_it() -> None:
    chunks = [[0, 2], [2]]
    with pytest.raises(UserError, match="2 rows cannot be read, max_bad_rows is 1"):
        list(load(tiny.processor(), get_task("vqa"), Rows(), chunks, max_bad=1))


def test_a_decoder_that_hangs_is_killed() -> None:
    old = tiny.processor()
    names = list(inspect.signature(UnivalProcessor).parameters)[1:]
    slow = Slow(old.tokenizer, **{name: getattr(old, name) for name in names})
    first, second = loaded(Rows(HANGS), slow, workers=1, max_bad=1, seconds=1.0)
    assert first.bad == {2: "its decoder hangs or crashes"}
    assert len(second.batch.examples) == 2
    with pytest.raises(BadRow, match=r"stopped after 1 s.*rows:2"):
        loaded(Rows(HANGS), slow, workers=1, seconds=1.0)


def test_a_bad_row_is_counted_and_scored_as_wrong(tmp_path: Path) -> None:
    lines = []
    for index in range(4):
        name = f"{index}.png"
        Image.fromarray(tiny.picture(index)).save(tmp_path / name)
        lines.append(json.dumps({"uid": str(index), "image": name, "question": "what?", "answers": ["cat"]}))
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config = {"name": "own", "task": "vqa", "source": {"manifest": str(tmp_path / "rows.jsonl")}, "batch_size": 2}
    configs = [EvaluationConfig.model_validate(config | {"max_bad_rows": 1})]
    report = evaluate_all(tiny.model(), tiny.processor(), configs, tmp_path / "out")
    assert report["own"]["samples"] == 4
    assert len(report["own"]["bad_rows"]) == 1
    assert "rows.jsonl:3" in report["own"]["bad_rows"][0]
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions-own.jsonl").read_text().splitlines()]
    assert (rows[2]["prediction"], rows[2]["scores"]["accuracy"]) == ("", 0.0)
    with pytest.raises(UserError, match=r"rows\.jsonl:3"):
        evaluate_all(tiny.model(), tiny.processor(), [EvaluationConfig.model_validate(config)], tmp_path / "strict")


def test_every_option_of_the_processor_is_on_record() -> None:
    source = {"world": "test"}
    config = EvaluationConfig.model_validate({"name": "a", "task": "vqa", "source": source})
    known = known_settings(tiny.model(), tiny.processor(), config, "")
    assert set(known["processor"]) == set(inspect.signature(UnivalProcessor).parameters) - {"tokenizer"}
    other = config.model_copy(update={"processor": {"video_sampling": "random"}})
    assert known_settings(tiny.model(), tiny.processor(), other, "") != known


def test_files_that_arguments_name_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.bin").write_bytes(b"a")
    (tmp_path / "b.bin").write_bytes(b"b")
    found = files_of({"model": str(tmp_path / "model"), "weights": str(tmp_path / "b.bin"), "name": "ViT", "n": 3})
    assert {Path(path).name for path in found} == {"a.bin", "b.bin"}
    assert all(digest and len(digest) == 64 for digest in found.values())


def test_a_pipe_is_no_medium(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hang.mp4")
    with pytest.raises(UserError, match="got a pipe or a device"):
        open_media(tmp_path / "hang.mp4", "video")
