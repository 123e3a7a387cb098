"""Evaluation: the same predictions for any batch size, after a kill, and in several processes; what is written."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests import tiny
from unival import evaluate as module
from unival.errors import UserError
from unival.evaluate import Evaluation, changed_processor, evaluate, evaluate_all, predict_rows, task_for
from unival.evaluation import provenance
from unival.evaluation.loading import make_ready
from unival.evaluation.predictions import PredictionStore, text_fields
from unival.evaluation.provenance import source_files, split_hash, weights_hash
from unival.schema import EvaluationConfig, SourceConfig
from unival.tasks.base import get_task
from unival.training.distributed import World

QUESTIONS = ("what is left of the cat?", "what?", "is it a red apple above a cat?", "how many dogs and cups?")
NUM_ROWS = 11
POSITIONS = (len(tiny.processor().tokenizer) - tiny.NUM_BINS, len(tiny.processor().tokenizer))


class Rows:
    """Questions of different lengths about different pictures."""

    variants = 1

    def __init__(self, number: int = NUM_ROWS, **columns: Any) -> None:
        self.number, self.columns, self.read = number, columns, []

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        self.read.append(index)
        row = {
            "uid": f"q{index}",
            "question_id": index,
            "image": tiny.picture(index),
            "video": np.stack([tiny.picture(index + frame) for frame in range(4)]),
            "audio": np.sin(np.arange(2000) * (index + 1) / 50).astype(np.float32),
            "question": QUESTIONS[index % len(QUESTIONS)],
            "answers": ["cat"],
            "captions": [QUESTIONS[index % len(QUESTIONS)], "a red cat"],
            "text": "the red apple",
            "label": "yes",
            "box": (1, 2, np.float64(20.5), 22),
            "width": 24,
            "height": 24,
        }
        return row | self.columns


SHORT = {"max_len_b": 12}  # an untrained model goes on to the end


def run(
    batch_size: int = 4, store: PredictionStore | None = None, source: Rows | None = None, **args: Any
) -> Evaluation:
    task = get_task(args.pop("task", "vqa"), args.pop("task_args", {}))
    if not task.writes_codes:
        args["options"] = SHORT | args.get("options", {})
    return evaluate(tiny.model(), tiny.processor(), task, source or Rows(), batch_size, store=store, **args)


# --------------------------------------------------------------------------------------------- nothing changes a number
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1},
        {"num_beams": 3, "options": {"max_len_b": 8, "no_repeat_ngram_size": 3}},
        {"num_beams": 2, "task_args": {"candidates": ("cat", "a red dog", "cup"), "prompt_type": "prev_output"}},
        {"task": "entailment", "task_args": {"prompt_type": "prev_output"}},
        {"task": "entailment", "task_args": {"prompt_type": "src"}},
        {
            "task": "grounding",
            "task_args": {"num_bins": tiny.NUM_BINS, "by_size": True},
            "options": {"constraint_range": POSITIONS, "max_len_b": 4},
        },
        {"num_beams": 2, "options": {"sampling": True, "sampling_topk": 20, "max_len_b": 6}},
        *({"num_beams": 2, "task_args": {"modality": modality}} for modality in ("video", "audio")),
        {"task": "text_to_image"},
    ],
    ids=[
        "greedy",
        "beam",
        "closed",
        "scored",
        "src",
        "grounding",
        "sampled",
        "video",
        "audio",
        "codes",
    ],
)
def test_batch_size_changes_nothing(settings: dict[str, Any]) -> None:
    alone = run(1, **settings)
    assert len(set(map(str, alone.predictions))) > 1 or settings.get("task") == "entailment"
    for size in (3, 8):
        batched = run(size, **settings)
        assert batched.predictions == alone.predictions
        assert {name: list(values) for name, values in batched.scores.items()} == {
            name: list(values) for name, values in alone.scores.items()
        }


def test_a_sample_depends_on_its_row_and_leaves_other_draws_alone() -> None:
    settings = {"num_beams": 1, "options": {"sampling": True, "max_len_b": 6}}
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = run(**settings).predictions
    assert torch.equal(torch.rand(2), expected)
    assert run(**settings).predictions == first
    assert len(set(first)) > 5


@pytest.mark.parametrize(("size", "modality"), [(2, "image"), (3, "image"), (2, "video"), (2, "audio")])
def test_processes_share_the_rows_and_each_is_predicted_once(tmp_path: Path, size: int, modality: str) -> None:
    task_args = {"modality": modality}
    expected = run(task_args=task_args)
    seen = []
    for rank in range(size):
        store = PredictionStore(tmp_path / "parts", World())
        rows = Rows()
        todo = list(range(NUM_ROWS))[rank::size]
        part = PredictionStore(tmp_path / "parts", World(rank=rank))
        task = get_task("vqa", task_args)
        ready = make_ready(tiny.processor(), task, rows, todo)
        part.append(predict_rows(tiny.model(), tiny.processor(), task, ready, 1, SHORT))
        seen += rows.read
    assert sorted(seen) == list(range(NUM_ROWS))
    store = PredictionStore(tmp_path / "parts", World())
    merged = run(store=store, task_args=task_args)
    assert merged.predictions == expected.predictions
    assert merged.records == expected.records


# ----------------------------------------------------------------------------------------------------------- continuing
class Killed(Exception):
    """Stands for a kill."""


def test_a_killed_evaluation_predicts_only_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run()
    store, source, original, calls = PredictionStore(tmp_path / "a", World()), Rows(), predict_rows, []

    def dies_at_the_third(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise Killed
        return original(*args)

    monkeypatch.setattr(module, "predict_rows", dies_at_the_third)
    with pytest.raises(Killed):
        run(3, store, source)
    path = tmp_path / "a" / "rank-0.jsonl"
    assert len(path.read_text().splitlines()) == 6
    with path.open("a") as file:
        file.write('{"index": 6, "prediction": "cut')  # a line that the kill has torn
    monkeypatch.setattr(module, "predict_rows", original)
    source.read.clear()
    finished = run(3, store, source)
    assert source.read == [6, 7, 8, 9, 10]
    assert finished.predictions == expected.predictions
    assert finished.records == expected.records
    assert list(store.rows()) != []
    store.discard()
    assert not (tmp_path / "a").exists()


def test_two_different_predictions_of_a_row_are_refused(tmp_path: Path) -> None:
    for rank, text in enumerate(("cat", "dog")):
        PredictionStore(tmp_path, World(rank=rank)).append([{"index": 0, "record": {}, "prediction": text}])
    with pytest.raises(UserError, match="two predictions for row 0"):
        PredictionStore(tmp_path, World()).rows()


def test_rows_that_other_processes_do_not_show_are_missed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"5 of 11 rows have no prediction, such as 1 \(all processes must see one"):
        run(store=Silent(tmp_path, World(rank=0, size=2)))


class Silent(PredictionStore):
    """Waits for nobody."""

    def wait(self) -> None:
        """Go on."""


def test_text_fields_survive_json() -> None:
    record = {"uid": "1", "image": np.zeros(3), "bytes": b"a", "box": (np.float32(1.5), 2), "n": np.int64(3), "x": None}
    nested = {"a": [True, {"b": "c"}]}
    fields = text_fields(record | {"nested": nested, "bad": {"a": object()}, "path": "a.png"})
    assert fields == {"uid": "1", "box": [1.5, 2], "n": 3, "x": None, "nested": nested, "path": "a.png"}
    assert json.loads(json.dumps(fields)) == fields


# -------------------------------------------------------------------------------------------------------------- writing
def suite(manifest: Path, *changes: dict[str, Any]) -> list[EvaluationConfig]:
    common = {"task": "vqa", "source": {"manifest": str(manifest)}, "batch_size": 2}
    return [EvaluationConfig.model_validate(common | change) for change in changes]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("rows")
    rows = []
    for index in range(5):
        Image.fromarray(tiny.picture(index)).save(folder / f"{index}.png")
        row = {name: value for name, value in Rows()[index].items() if name not in {"image", "video", "audio", "box"}}
        rows.append(row | {"image": f"{index}.png", "box": [1, 2, 20, 22]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    unlabelled = [{key: row[key] for key in ("uid", "question_id", "question", "image")} for row in rows]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unlabelled))
    return folder / "rows.jsonl"


def test_everything_that_can_change_a_number_is_written_down(manifest: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.txt"
    answers.write_text("cat\nred dog\n")
    configs = suite(
        manifest,
        {"name": "open", "search": {"lenpen": 0.7}, "num_beams": 2, "processor": {"image_px": 32}},
        {"name": "closed", "task_args": {"candidates_file": str(answers)}, "submission": "vqa"},
        {"name": "found", "task": "grounding", "submission": "refcoco"},
    )
    report = evaluate_all(tiny.model(), tiny.processor(), configs, tmp_path / "out", checkpoint="models/any")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == report
    first, second, third = (metrics[name]["settings"] for name in ("open", "closed", "found"))
    assert (first["search"]["beam"], first["search"]["lenpen"]) == (2, 0.7)
    assert first["task_args"]["prompt"] == "{question}"
    assert (first["processor"]["image_px"], second["processor"]["image_px"]) == (32, 24)
    assert first["weights_sha256"] == weights_hash(tiny.model())
    assert len(first["tokenizer_sha256"]) == 64
    assert (first["dtype"], first["device"], first["autocast"]) == ("float32", "cpu", None)
    assert first["versions"]["torch"] == torch.__version__
    assert first["answers"] is None
    assert second["answers"]["number"] == 2
    assert len(second["files"]["candidates_file"]["sha256"]) == 64
    assert third["task_args"]["num_bins"] == tiny.NUM_BINS  # the model's, not the task's default
    assert metrics["open"]["checkpoint"] == "models/any"
    assert metrics["open"]["split_sha256"] == metrics["closed"]["split_sha256"]
    assert metrics["open"]["metrics"] == report["open"]["metrics"]
    assert not (tmp_path / "out" / ".unfinished").exists()

    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions-closed.jsonl").read_text().splitlines()]
    assert [row["uid"] for row in rows] == [f"q{i}" for i in range(5)]
    assert {row["prediction"] for row in rows} <= {"cat", "red dog"}
    fields = [{name: row[name] for name in row if name not in {"prediction", "scores"}} for row in rows]
    assert split_hash(fields) == metrics["closed"]["split_sha256"]
    submission = json.loads((tmp_path / "out" / "submission-closed.json").read_text())
    assert submission == [{"question_id": i, "answer": row["prediction"]} for i, row in enumerate(rows)]
    boxes = json.loads((tmp_path / "out" / "submission-found.json").read_text())
    assert [len(entry["box"]) for entry in boxes] == [4] * 5


def test_a_split_without_labels_has_predictions_and_a_submission_only(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = suite(manifest.with_name("test.jsonl"), {"name": "test", "submission": "vqa"})
    assert evaluate_all(tiny.model(), tiny.processor(), configs, tmp_path) == {"test": {"samples": 5, "metrics": {}}}
    told = " ".join(capsys.readouterr().err.split())  # a person whose column has another name must see why
    assert "test: no row has labels, columns uid, question_id, question" in told
    labelled = evaluate_all(tiny.model(), tiny.processor(), suite(manifest, {"name": "val"}), tmp_path / "val")
    assert "no row has labels" not in capsys.readouterr().err
    assert list(labelled["val"]["metrics"]) == ["accuracy"]
    predictions = [
        [json.loads(line)["prediction"] for line in path.read_text().splitlines()]
        for path in (tmp_path / "predictions-test.jsonl", tmp_path / "val" / "predictions-val.jsonl")
    ]
    assert predictions[0] == predictions[1]


def test_a_changed_model_does_not_meet_unfinished_rows_of_another(manifest: Path, tmp_path: Path) -> None:
    (config,) = suite(manifest, {"name": "one"})
    known = [
        module.known_settings(model, tiny.processor(), config, weights_hash(model))
        for model in (tiny.model(), tiny.build_model(seed=1), tiny.model())
    ]
    assert known[0] == known[2]
    assert known[0] != known[1]
    other = module.known_settings(tiny.model(), tiny.processor(), config.model_copy(update={"num_beams": 2}), "")
    assert other["search"] != known[0]["search"]


def test_changed_archives_and_data_sets_are_other_data(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"one")
    (tmp_path / "data").mkdir()
    for source in ({"webdataset": f"{tmp_path}/{{0..0}}.tar"}, {"huggingface": str(tmp_path / "data")}):
        config = SourceConfig.model_validate(source)
        before = source_files(config)
        (tmp_path / "0.tar").write_bytes(b"another")
        (tmp_path / "data" / "rows.parquet").write_bytes(b"rows")
        assert source_files(config) != before
        assert source_files(config) == source_files(config)


def test_an_evaluation_goes_on_with_another_number_of_threads(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config,) = suite(manifest, {"name": "one"})
    predicted: list[int] = []

    def counted(*args: Any) -> Any:
        if len(predicted) == 4:
            raise KeyboardInterrupt
        predicted.extend(args[3].indices)
        return predict_rows(*args)

    monkeypatch.setattr(module, "predict_rows", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_all(tiny.model(), tiny.processor(), [config], tmp_path)
    versions = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: versions | {"threads": "77 threads"})
    predicted.append(-1)
    evaluate_all(tiny.model(), tiny.processor(), [config], tmp_path)
    assert predicted == [0, 1, 2, 3, -1, 4]
    assert json.loads((tmp_path / "metrics.json").read_text())["one"]["settings"]["versions"]["threads"] == "77 threads"


def test_what_a_model_cannot_read_is_said_before_anything_is_predicted(manifest: Path, tmp_path: Path) -> None:
    (config,) = suite(manifest, {"name": "heard", "task_args": {"modality": "audio"}})
    with pytest.raises(UserError, match="this model has no audio encoder"):
        evaluate_all(tiny.build_model(audio_encoder=None), tiny.processor(), [config], tmp_path)
    (config,) = suite(manifest, {"name": "d", "task": "caption", "task_args": {"document_frequencies": "nowhere"}})
    with pytest.raises(UserError, match=r"task_args\.document_frequencies: there is no file nowhere"):
        evaluate_all(tiny.model(), tiny.processor(), [config], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_row_without_a_label_among_others_is_named_where_it_comes(manifest: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[3]["answers"] = []
    mixed = manifest.with_name("mixed.jsonl")
    mixed.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"this row has no label, others have one.*mixed\.jsonl.*4"):
        evaluate_all(tiny.model(), tiny.processor(), suite(mixed, {"name": "one"}), tmp_path)


def test_two_evaluations_of_one_name_are_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two evaluations are called 'one'"):
        evaluate_all(tiny.model(), tiny.processor(), suite(manifest, {"name": "one"}, {"name": "one"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_configured_reward_chooses_and_is_written_down(manifest: Path, tmp_path: Path) -> None:
    rerank = {"reward": "length", "args": {"words": 3}}
    configs = suite(manifest, {"name": "plain", "num_beams": 3}, {"name": "chosen", "num_beams": 3, "rerank": rerank})
    report = evaluate_all(tiny.model(), tiny.processor(), configs, tmp_path)
    assert set(report["chosen"]["metrics"]) - set(report["plain"]["metrics"]) == {"reward"}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["chosen"]["settings"]["rerank"] == rerank
    assert "rerank" not in metrics["plain"]["settings"]
    configs = suite(manifest, {"name": "typo", "rerank": {"reward": "lenght"}})
    with pytest.raises(UserError, match="did you mean 'length'"):
        evaluate_all(tiny.model(), tiny.processor(), configs, tmp_path / "typo")


@pytest.mark.parametrize("name", ["", "../a", "a/b", "a\\b", "a\nb"])
def test_a_name_that_is_no_part_of_a_file_name_is_refused(name: str, manifest: Path) -> None:
    with pytest.raises(ValidationError, match="part of file names"):
        suite(manifest, {"name": name})


def test_an_unknown_submission_is_refused_before_anything_is_predicted(manifest: Path, tmp_path: Path) -> None:
    configs = suite(manifest, {"name": "one"}, {"name": "two", "submission": "vqaa"})
    with pytest.raises(UserError, match="did you mean 'vqa'"):
        evaluate_all(tiny.model(), tiny.processor(), configs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_submission_that_its_first_row_forbids_is_refused_before_anything_is_predicted(
    manifest: Path, tmp_path: Path
) -> None:
    configs = suite(manifest, {"name": "one"}, {"name": "two", "submission": "activitynet"})
    with pytest.raises(UserError, match=r"submission activitynet: the row has no timestamp \[.*rows\.jsonl:1\]"):
        evaluate_all(tiny.model(), tiny.processor(), configs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_submission_that_fails_at_its_end_leaves_the_scores_of_all(manifest: Path, tmp_path: Path) -> None:
    configs = suite(manifest, {"name": "one", "task": "grounding", "submission": "vqa"}, {"name": "two"})  # no answers
    with pytest.raises(UserError, match="the prediction must be text"):
        evaluate_all(tiny.model(), tiny.processor(), configs, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(report) == ["one", "two"]
    assert not (tmp_path / "out" / "submission-one.json").exists()


def test_a_suite_killed_in_its_second_evaluation_keeps_the_first(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, original = suite(manifest, {"name": "one"}, {"name": "two", "num_beams": 2}), predict_rows
    whole = evaluate_all(tiny.model(), tiny.processor(), configs, tmp_path / "whole")

    def dies(*args: Any) -> Any:
        if args[4] == 2:  # the beams of the second
            raise Killed
        return original(*args)

    monkeypatch.setattr(module, "predict_rows", dies)
    with pytest.raises(Killed):
        evaluate_all(tiny.model(), tiny.processor(), configs, tmp_path / "out")
    beams = []
    monkeypatch.setattr(module, "predict_rows", lambda *args: beams.append(args[4]) or original(*args))
    assert evaluate_all(tiny.model(), tiny.processor(), configs, tmp_path / "out") == whole
    assert set(beams) == {2}
    assert not (tmp_path / "out" / ".unfinished").exists()


def test_a_processor_can_be_changed_for_an_evaluation_only() -> None:
    changed = changed_processor(tiny.processor(), {"image_px": 40, "num_frames": 2})
    assert (changed.image_px, changed.num_frames, changed.video_px) == (40, 2, 24)
    assert tiny.processor().image_px == 24
    with pytest.raises(UserError, match=r"unknown processor option 'image_pxx'.*image_px"):
        changed_processor(tiny.processor(), {"image_pxx": 1})


def test_position_tokens_are_the_models_unless_given() -> None:
    fields = {"name": "a", "task": "grounding", "source": {"world": "test"}}
    task = task_for(EvaluationConfig.model_validate(fields), tiny.processor())
    assert task.model_dump()["num_bins"] == tiny.NUM_BINS
    task = task_for(EvaluationConfig.model_validate(fields | {"task_args": {"num_bins": 7}}), tiny.processor())
    assert task.model_dump()["num_bins"] == 7


def test_src_needs_scores() -> None:
    with pytest.raises(UserError, match="prompt_type: src"):
        run(task_args={"prompt_type": "src"})


def test_a_reward_chooses_among_the_hypotheses() -> None:
    def longest(predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        assert len({record["uid"] for record in records}) == 1
        return np.array([len(text) for text in predictions], dtype=np.float64)

    settings: dict[str, Any] = {"num_beams": 4, "options": {"max_len_b": 8}}
    plain, chosen = run(**settings), run(rerank=longest, **settings)
    assert all(len(long) >= len(text) for long, text in zip(chosen.predictions, plain.predictions, strict=True))
    assert chosen.predictions != plain.predictions
    assert chosen.scores["reward"].tolist() == [len(text) for text in chosen.predictions]
    assert "accuracy" in chosen.scores


def test_pictures_are_written_as_codes_of_the_right_number() -> None:
    rows = Rows(3, caption="a red cat", captions=["a red cat"])
    settings: dict[str, Any] = {"task": "text_to_image", "source": rows}
    for options in ({}, {"sampling": True, "sampling_topk": 4}):
        predictions: Sequence[Any] = run(2, options=options, **settings).predictions
        assert [len(codes) for codes in predictions] == [16] * 3  # code_image_size 32
        assert all(0 <= code < tiny.NUM_CODES for codes in predictions for code in codes)
