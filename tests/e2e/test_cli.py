"""The command line: results in text and JSON, and one to three lines for wrong input."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import unival
from tests import tiny
from unival.checkpoint import save_model
from unival.cli import app, print_predictions
from unival.data.clips import MovingClips
from unival.errors import UserError, run_cli
from unival.predict import Pipeline
from unival.tasks import PREDICT_TASKS
from unival.training.stop import Interrupted
from unival.yaml12 import write_yaml


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("cli") / "model", tiny.model(), tiny.processor()))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with media, whole and broken, and a manifest."""
    folder = tmp_path_factory.mktemp("files")
    for index in range(3):
        Image.fromarray(tiny.picture(index, 40)).save(folder / f"{index}.png")
    clip = MovingClips("train")[0].encode()
    (folder / "clip.mp4").write_bytes(clip)
    (folder / "cut.mp4").write_bytes(clip[: len(clip) // 2])
    soundfile.write(folder / "sound.wav", np.sin(np.arange(4000) / 5), 8000)
    (folder / "notes.png").write_text("these are notes, not a picture")
    (folder / "empty.png").touch()
    rows = [{"uid": str(i), "image": f"{i}.png", "captions": ["a cat", "the cat"]} for i in range(3)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def direct(task: str, num_beams: int = 1) -> Pipeline:
    """Return the pipeline of the same model without reading it again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unival.predict.load", lambda path, device: (tiny.model(), tiny.processor()))
        return Pipeline(task, "", num_beams)


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        run_cli(app, [str(argument) for argument in arguments])
    code = caught.value.code
    assert isinstance(code, int | None)
    return code or 0


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the error lines; nothing else may be printed."""
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert 1 <= len(lines) <= 3, err
    assert lines[0].startswith("error: ")
    assert all(line.startswith(("  where: ", "  fix: ")) for line in lines[1:])
    return lines


# ----------------------------------------------------------------------------------------------------------- predict
MEDIA = {"image": "0.png", "video": "clip.mp4", "audio": "sound.wav"}


@pytest.mark.parametrize("task", PREDICT_TASKS)
def test_every_task_answers_about_a_file(
    task: str, model: str, files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = files / MEDIA[PREDICT_TASKS[task][1]]
    text = None if "caption" in task else "the cat"
    draw = ["--draw", tmp_path] if task == "grounding" else []
    words = ["--text", text] if text else []
    assert run("predict", task, path, "--model", model, "--json", *draw, *words) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["file"] == str(path)
    assert result["task"] == task
    expected = direct(task)(str(path), text=text)
    assert result["prediction"] == expected["prediction"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["caption", "--text", "hi"], "caption takes no text.*leave it out"),
        (["caption", "--draw", "q.png"], "caption has no boxes to draw.*--draw"),
        (["captoin"], "did you mean 'caption'.*or a Python file of your own"),
    ],
)
def test_what_a_task_does_not_use_is_refused(
    words: list[str], message: str, model: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", words[0], files / "0.png", "--model", model, *words[1:]) == 2
    assert re.search(message, " ".join(error_lines(capsys)))


def test_a_task_of_ones_own_predicts_and_patterns_stand_for_lists(
    model: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shout.py").write_text(
        "from unival.tasks.vqa import Task as VQA\n\n\nclass Task(VQA):\n"
        "    def parse(self, text, record):\n        return record['question'].upper() + text\n"
    )
    own = str(tmp_path / "shout.py")
    assert run("predict", own, files / "[01].png", "--text", "what?", "--model", model, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2
    assert all(row["prediction"].startswith("WHAT?") for row in rows)
    assert unival.pipeline(own, model=model)(f"{files}/[01].png", text="what?") == rows


@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        ("a cat", "a cat"),
        ([1.25, 2, 3, 4.0], "1.2 2.0 3.0 4.0"),
        (None, "no box"),
        (["a cat", "a dog"], '["a cat", "a dog"]'),
    ],
)
def test_predictions_of_any_kind_are_printed(prediction: Any, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_predictions([{"file": "a.png", "prediction": prediction}], as_json=False)
    assert capsys.readouterr().out == f"{line}\n"


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"unival {unival.__version__}\n"


def test_beams_are_used(model: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "caption", files / "0.png", "--model", model, "--beams", "3", "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["prediction"] == direct("caption", num_beams=3)(files / "0.png")["prediction"]


def test_a_file_closes_the_set_of_answers(
    model: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "answers.txt").write_text("blue cup\nyes\n")
    question = ["predict", "vqa", files / "0.png", "--text", "What is it", "--model", model, "--candidates"]
    assert run(*question, tmp_path / "answers.txt", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["prediction"] in {"blue cup", "yes"}
    assert run(*question, tmp_path / "none.txt") == 2
    assert error_lines(capsys)[0] == "error: no such file of answers"


def test_patterns_name_several_files_in_order(model: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "caption", files / "[0-9].png", "--model", model) == 0
    lines = capsys.readouterr().out.splitlines()
    predictions = direct("caption")([files / f"{i}.png" for i in range(3)])
    for index, prediction in enumerate(predictions):
        assert f"{files / f'{index}.png'}: " in "\n".join(lines)
        assert prediction["file"] == str(files / f"{index}.png")


@pytest.mark.parametrize("as_json", [False, True])
def test_grounding_prints_pixels_and_draws_the_box(
    model: str,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,
) -> None:
    answers = ["<bin_0><bin_3><bin_9><bin_6>", "nothing"]
    monkeypatch.setattr("unival.predict.generate", lambda *_: answers)
    arguments = [
        "grounding",
        files / "0.png",
        files / "1.png",
        "--text",
        "the cat",
        "--draw",
        tmp_path / "new" / "boxes",
    ]
    assert run("predict", *arguments, "--model", model, *(["--json"] if as_json else [])) == 0
    out = capsys.readouterr().out
    drawing = tmp_path / "new" / "boxes" / "0.box.png"
    if as_json:
        first, second = json.loads(out)
        assert first["prediction"] == pytest.approx([0.0, 40 / 3, 40.0, 80 / 3])
        assert first["drawing"] == str(drawing)
        assert second["prediction"] is None
        assert "drawing" not in second
    else:
        assert out.splitlines() == [
            f"{files / '0.png'}: 0.0 13.3 40.0 26.7  -> {drawing}",
            f"{files / '1.png'}: no box",
        ]
    with Image.open(drawing) as picture:
        scale = picture.width / 40
        assert picture.getpixel((0, round(20 * scale))) == (220, 30, 60)
        assert picture.getpixel((round(20 * scale), round(20 * scale))) != (220, 30, 60)
    assert not (tmp_path / "new" / "boxes" / "1.box.png").exists()


def test_a_drawing_can_be_given_a_name_in_a_new_folder(
    model: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unival.predict.generate", lambda *_: ["<bin_0><bin_3><bin_9><bin_6>"])
    target = tmp_path / "new" / "box.png"
    assert run("predict", "grounding", files / "0.png", "--text", "it", "--model", model, "--draw", target) == 0
    assert target.is_file()
    assert str(target) in capsys.readouterr().out


DRAW_ERRORS: dict[str, tuple[int, str, str]] = {
    "file below a file": (1, "0.png/box.png", "cannot write the drawing: .*--draw takes a folder"),
    "folder below a file": (1, "0.png/boxes", "cannot write the drawing: .*--draw takes a folder"),
    "file for two pictures": (2, "2.png", "one drawing for 2 pictures.*2.png.*a folder"),
    "too long": (1, "x" * 300, "cannot write the drawing: File name too long"),
    "the picture": (1, "0.png", "the drawing would replace the picture.*another name"),
}


@pytest.mark.parametrize(("number", "out", "message"), DRAW_ERRORS.values(), ids=DRAW_ERRORS)
def test_a_wrong_place_for_drawings_is_refused_before_anything_is_predicted(
    number: int,
    out: str,
    message: str,
    model: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("unival.predict.generate", lambda *_: pytest.fail("predicted"))
    pictures = [files / f"{index}.png" for index in range(number)]
    before = [path.read_bytes() for path in pictures]
    assert run("predict", "grounding", *pictures, "--text", "it", "--model", model, "--draw", files / out) == 2
    assert re.search(message, " ".join(error_lines(capsys)))
    assert [path.read_bytes() for path in pictures] == before


def test_no_drawing_replaces_another_one_or_a_picture(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a/x.png", "b/x.png", "b/x.jpg", "b/x.box.png"]
    monkeypatch.setattr("unival.predict.generate", lambda *_: ["<bin_0><bin_3><bin_9><bin_6>"] * len(names))
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (400, 300 + index)).save(tmp_path / name)
    pictures = [tmp_path / name for name in names]
    arguments = ["predict", "grounding", *pictures, "--text", "it", "--model", model, "--json"]
    beside = ["a/x.box.png", "b/x.box-2.png", "b/x.box-3.png", "b/x.box.box.png"]
    together = ["c/x.box.png", "c/x.box-2.png", "c/x.box-3.png", "c/x.box.box.png"]
    for draw, expected in (([], beside), (["--draw", tmp_path / "c"], together)):
        assert run(*arguments, *draw) == 0
        drawings = [result["drawing"] for result in json.loads(capsys.readouterr().out)]
        assert drawings == [str(tmp_path / name) for name in expected]
        for index, (name, drawing) in enumerate(zip(names, drawings, strict=True)):
            for path in (tmp_path / name, drawing):
                with Image.open(path) as picture:
                    assert picture.size == (400, 300 + index)


def test_predictions_are_printed_although_a_drawing_cannot_be_written(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unival.predict.generate", lambda *_: ["<bin_0><bin_3><bin_9><bin_6>"] * 2)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 30)).save(tmp_path / name)
    (tmp_path / "a.box.png").mkdir()
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    assert run("predict", "grounding", *pictures, "--text", "it", "--model", model) == 2
    out, err = capsys.readouterr()
    boxes = [line.partition(": ")[2] for line in out.splitlines()]
    assert boxes == ["0.0 10.0 30.0 20.0", f"0.0 10.0 30.0 20.0  -> {tmp_path / 'b.box.png'}"]
    assert err.startswith("error: cannot write the drawing: ")


PREDICT_ERRORS: dict[str, tuple[list[str], str]] = {
    "missing file": (["caption", "{files}/none.png"], "no such file: .*none.png"),
    "name that no file can have": (["caption", "x" * 300], "no such file: x"),
    "pattern without files": (["caption", "{files}/*.bmp"], r"no such file: .*\*.bmp"),
    "text named png": (["caption", "{files}/notes.png"], "notes.png"),
    "empty file": (["caption", "{files}/empty.png"], "empty"),
    "folder": (["caption", "{files}"], "folder"),
    "truncated video": (["video-caption", "{files}/cut.mp4"], "cut.mp4"),
    "picture as sound": (["audio-caption", "{files}/0.png"], "0.png"),
    "unknown task": (["captoin", "{files}/0.png"], "unknown task 'captoin'.*did you mean 'caption'"),
    "question missing": (["vqa", "{files}/0.png"], "vqa needs a text.*--text"),
    "text too long": (["vqa", "{files}/0.png", "--text", "why? " * 60], r"a text has \d+ tokens, the model reads 64"),
}


@pytest.mark.parametrize("case", PREDICT_ERRORS)
def test_wrong_input_of_predict_is_explained(
    case: str, model: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = PREDICT_ERRORS[case]
    assert run("predict", *[a.format(files=files) for a in arguments], "--model", model) == 2
    assert re.search(message, " ".join(error_lines(capsys)))


def test_a_folder_without_weights_is_no_model(tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "caption", files / "0.png", "--model", tmp_path) == 2
    assert error_lines(capsys)[0] == "error: not a model folder: config.json is missing"
    assert run("predict", "caption", files / "0.png", "--model", tmp_path / "none") == 2
    assert "no such model folder" in error_lines(capsys)[0]


def test_a_model_that_cannot_hear_says_so(tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deaf = save_model(tmp_path / "deaf", tiny.build_model(audio_encoder=None), tiny.processor())
    assert run("predict", "audio-caption", files / "sound.wav", "--model", deaf) == 2
    assert error_lines(capsys)[0] == "error: the model cannot read audio: it has no audio encoder"


def test_debug_shows_where_an_error_was_raised(model: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        run_cli(app, ["predict", "caption", "none.png", "--model", model, "--debug"])


# ------------------------------------------------------------------------------------------------ train and evaluate
def write(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(write_yaml(settings), encoding="utf-8")
    return path


def suite(files: Path, tmp_path: Path) -> Path:
    source = {"manifest": str(files / "rows.jsonl")}
    evaluations = [{"name": name, "task": "caption", "source": source, "batch_size": 2} for name in ("one", "two")]
    return write(tmp_path / "suite.yaml", {"evaluations": evaluations})


def test_evaluate_writes_results_and_predictions(
    model: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert run("evaluate", suite(files, tmp_path), "--model", model, "--out", out, "--only", "two", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert list(results) == ["two"]
    assert results["two"]["samples"] == 3
    assert {"cider_d", "exact"} <= set(results["two"]["metrics"])
    assert json.loads((out / "evaluation.json").read_text()) == results
    predictions = [json.loads(line) for line in (out / "predictions-two.jsonl").read_text().splitlines()]
    expected = direct("caption")([files / f"{i}.png" for i in range(3)])
    assert [row["prediction"] for row in predictions] == [row["prediction"] for row in expected]


def test_evaluate_prints_a_table(model: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", suite(files, tmp_path), "--model", model, "--out", tmp_path / "results") == 0
    out = capsys.readouterr().out
    assert "cider_d" in out
    assert out.count("exact") == 2


def test_train_prints_where_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny.run_settings(tmp_path / "run", (1, 1))
    path = write(tmp_path / "run.yaml", settings | {"stages": settings["stages"][:1]})
    assert run("train", path, f"out={tmp_path / 'other'}", "stages.0.steps=2", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"model": str(tmp_path / "other" / "model"), "evaluations": {}}
    assert len((tmp_path / "other" / "metrics.jsonl").read_text().splitlines()) == 2
    assert run("train", path, f"out={tmp_path / 'other'}", "stages.0.steps=3") == 2
    assert "another configuration" in error_lines(capsys)[0]


def test_the_demo_stops_with_one_line_and_the_signals_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(out: Path, configs: Path, fresh: bool) -> None:
        raise Interrupted("stopped at step 3; the same command continues", signal.SIGTERM)

    monkeypatch.setattr("unival.demo.run_demo", stopped)
    assert run("demo", "--out", tmp_path) == 143
    assert capsys.readouterr().err == "stopped at step 3; the same command continues\n"


CONFIG_ERRORS: dict[str, tuple[list[str], str]] = {
    "missing configuration": (["train", "{tmp}/none.yaml"], "none.yaml"),
    "unknown key": (["train", "{tmp}/run.yaml", "stages.0.stepps=3"], "stepps.*steps"),
    "wrong type": (["train", "{tmp}/run.yaml", "seed=one"], "seed"),
    "unknown model option": (["train", "{tmp}/run.yaml", "model.d_modle=8"], "d_modle.*d_model"),
    "unknown task": (["train", "{tmp}/run.yaml", "stages.0.groups.0.tasks.0.task=captoin"], "captoin.*caption"),
    "unknown style": (["train", "{tmp}/run.yaml", "stages.0.groups.0.tasks.0.source.styles=[notto]"], "notto"),
    "missing manifest": (
        ["train", "{tmp}/run.yaml", "stages.0.groups.0.tasks.0.source={{manifest: none.jsonl}}"],
        "none.jsonl",
    ),
    "folder of results": (["evaluate", "{tmp}/suite.yaml", "-o", "/proc/x", "--model", "absent"], "--out"),
    "unknown evaluation": (["evaluate", "{tmp}/suite.yaml", "--only", "tow", "--model", "{model}"], "'tow'.*two"),
    "not a configuration": (["train", "{files}/0.png"], "0.png"),
}


@pytest.mark.parametrize("case", CONFIG_ERRORS)
def test_wrong_configurations_are_explained(
    case: str, model: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run.yaml", tiny.run_settings(tmp_path / "run", (1, 1)))
    suite(files, tmp_path)
    arguments, message = CONFIG_ERRORS[case]
    assert run(*[a.format(tmp=tmp_path, files=files, model=model) for a in arguments]) == 2
    assert re.search(message, " ".join(error_lines(capsys)))


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks", "--json") == 0
    assert json.loads(capsys.readouterr().out) == list(PREDICT_TASKS)
    assert run("tasks") == 0
    assert capsys.readouterr().out.split() == list(PREDICT_TASKS)


def test_a_pipeline_takes_paths_bytes_pictures_and_arrays(model: str, files: Path) -> None:
    pipe = unival.pipeline("caption", model)
    path = files / "0.png"
    with Image.open(path) as picture:
        inputs = [path, path.read_bytes(), picture.copy(), np.asarray(picture)]
    answers = {pipe(item)["prediction"] for item in inputs} | {r["prediction"] for r in pipe(inputs)}
    assert len(answers) == 1
    assert pipe([]) == []
    assert pipe(path.read_bytes())["file"] == "input 0"
