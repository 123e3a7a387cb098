"""A pipeline opens the rows of its task and scores what it says about them."""

import io
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from unival import predict
from unival.errors import UserError
from unival.tasks.caption import without_punctuation


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "load", lambda path, device: (tiny.model(), tiny.processor()))


@pytest.fixture
def describe() -> predict.Pipeline:
    return predict.pipeline("caption", Path("anywhere"))


def test_rows_are_those_of_the_task_and_are_predicted_as_single_media_are(describe: predict.Pipeline) -> None:
    rows = describe.rows(world="test", limit=3)
    result = describe.evaluate(rows, batch_size=2)
    assert [record["caption"] for record in result.records] == [rows[index]["caption"] for index in range(3)]
    alone = [describe(rows[index]["image"])["prediction"] for index in range(3)]  # of one's own pictures: cleaned
    assert [without_punctuation(text) for text in result.predictions] == alone
    assert set(result.scores) == {"cider_d", "exact", "names"}
    assert all(len(scores) == 3 for scores in result.scores.values())


def test_a_wrong_argument_of_rows_is_explained(describe: predict.Pipeline) -> None:
    with pytest.raises(UserError, match="limitt") as error:
        describe.rows(world="test", limitt=3)
    assert "limit" in str(error.value.fix)
    with pytest.raises(UserError, match="no image rows for 'captoin'"):
        describe.rows(world="test", content="captoin")


def clip(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def closed_file() -> io.BytesIO:
    file = io.BytesIO(b"abc")
    file.close()
    return file


IMAGE, VIDEO, AUDIO = "a path, bytes.*Pillow", r"uint8 array \(frames, height, width, 3\)", r"array \(samples,\) of"
WRONG_MEDIA: dict[str, tuple[str, Any, str]] = {
    "nothing": ("caption", None, f"from NoneType.*input 0.*{IMAGE}"),
    "number": ("caption", 3, f"from int.*{IMAGE}"),
    "tensor": ("caption", torch.zeros(3, 8, 8), f"from Tensor.*{IMAGE}"),
    "generator": ("caption", (x for x in "ab"), f"from generator.*{IMAGE}"),
    "bytes that change": ("caption", bytearray(b"abc"), f"from bytearray.*{IMAGE}"),
    "second of two": ("caption", [tiny.picture(), None], f"from NoneType.*input 1.*{IMAGE}"),
    "file of text": ("caption", io.StringIO("abc"), f"from StringIO.*{IMAGE}"),
    "closed file": ("caption", closed_file(), "the image file is closed"),
    "clip as a picture": ("caption", clip(2, 8, 8, 3), r"\(2, 8, 8, 3\).*input 0"),
    "no video": ("video-caption", None, f"from NoneType.*{VIDEO}"),
    "no frames": ("video-caption", clip(0, 8, 8, 3), f"{VIDEO}, got uint8 .0, 8, 8, 3.*input 0"),
    "picture as a clip": ("video-caption", clip(8, 8, 3), f"{VIDEO}, got"),
    "channels first": ("video-caption", clip(4, 3, 8, 8), f"{VIDEO}, got"),
    "clip of floats": ("video-caption", np.zeros((4, 8, 8, 3)), f"{VIDEO}, got float64"),
    "no sound": ("audio-caption", None, f"from NoneType.*{AUDIO}"),
    "silence of no length": ("audio-caption", np.zeros(0), f"{AUDIO}.*got float64 .0,.*input 0"),
    "two channels": ("audio-caption", np.zeros((2, 400)), f"{AUDIO}.*mean of channels"),
    "sound of integers": ("audio-caption", np.zeros(400, np.int16), f"{AUDIO}.*int16"),
    "sound without numbers": ("audio-caption", np.full(400, np.nan), f"{AUDIO} finite"),
}


@pytest.mark.parametrize(("task", "medium", "message"), WRONG_MEDIA.values(), ids=WRONG_MEDIA)
def test_what_is_no_medium_is_named_with_what_is_accepted(task: str, medium: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict.pipeline(task)(medium)


def test_an_array_is_a_clip_of_any_length_and_any_sequence_is_a_list() -> None:
    look = predict.pipeline("video-caption")
    long, short = clip(9, 8, 8, 3), clip(3, 8, 8, 3)
    chosen = long[[0, 2, 4, 7]]  # the middle of each of four parts, as of a file
    assert torch.equal(tiny.processor().video(long), tiny.processor().video(chosen))
    assert look(deque([long, short])) == look([chosen, short[[0, 1, 2, 2]]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "needs a text"),
        (" ", "needs a text"),
        (["what?", ""], "needs a text"),
        (3, "must be a str, got 3"),
        (["what?", b"what?"], "must be a str, got b'what"),
        (["what?"] * 3, "3 texts for 2 inputs"),
        ("\udcff", "not valid Unicode"),
    ],
)
def test_a_wrong_text_is_explained(text: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict.pipeline("vqa")([tiny.picture(0), tiny.picture(1)], text)


def test_every_input_can_have_its_own_text() -> None:
    answer, pictures, texts = predict.pipeline("vqa"), [tiny.picture(0), tiny.picture(1)], ["what is it?", "a dog?"]
    alone = [answer(picture, text)["prediction"] for picture, text in zip(pictures, texts, strict=True)]
    assert [result["prediction"] for result in answer(pictures, texts)] == alone


@pytest.mark.parametrize("arguments", [{"task": None}, {"task": ["vqa"]}, {"task": "vqa", "num_beams": "3"}])
def test_a_wrong_argument_of_a_pipeline_is_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"unknown task .*valid: |num_beams is '3'"):
        predict.pipeline(**arguments)
