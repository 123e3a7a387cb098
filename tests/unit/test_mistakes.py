"""Mistakes people make in configurations: the message names the key, the value, what is valid and what is close."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from unival.config import load_config
from unival.errors import UserError
from unival.schema import RunConfig
from unival.training.check import check_run
from unival.training.check_resume import check_same
from unival.yaml12 import write_yaml

GROUP = "stages.0.groups.0"
TASK = f"{GROUP}.tasks.0"
VIDEO = {"task": "caption", "task_args": {"modality": "video"}, "source": {"world": "train"}}
EVALUATION = {"name": "a", "task": "caption", "source": {"world": "test"}}
WATCHED = {"every": 1, "evaluations": [EVALUATION]}

# Name: overrides (a value that is None is removed from the file), and what the message must say, in any order.
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    # typing errors in keys
    "key at the top": ({"stagse": []}, ["unknown key 'stagse'", "did you mean 'stages'?", "valid: "]),
    "key of a section": (
        {"stages.0.optim.weight_deccay": 0.1},
        ["optim.weight_deccay", "did you mean 'weight_decay'?"],
    ),
    "key of a task": ({f"{TASK}.shares": 2}, [f"'{TASK}.shares'", "did you mean 'share'?", "every"]),
    "key of a source": ({f"{TASK}.source.wrold": "train"}, ["source.wrold", "did you mean 'world'?", "manifest"]),
    "key of another program": ({"stages.0.optim.learning_rate": 1}, ["optim.learning_rate", "valid: ", "lr"]),
    # wrong types
    "word for a number": ({"stages.0.optim.lr": "fast"}, ["stages.0.optim.lr", "a number", "'fast'"]),
    "fraction for a count": ({"stages.0.steps": 1.5}, ["stages.0.steps", "a whole number", "1.5"]),
    "number for a pair": ({"stages.0.optim.betas": 0.9}, ["stages.0.optim.betas", "a list", "0.9"]),
    "word for a switch": ({"stages.0.freeze_batchnorm": "perhaps"}, ["freeze_batchnorm", "true or false", "'perhaps'"]),
    "section for a list": ({"stages": {"name": "a"}}, ["stages", "a list", "'name': 'a'"]),
    "number for text": ({"out": 7}, ["out", "text", "got 7", "in quotes: '7'"]),
    "list for a task": ({f"{TASK}.task": ["caption"]}, [f"{TASK}.task", "text", "['caption']"]),
    "metric": (
        {"stages.0.validation": WATCHED | {"monitor": "a/cide"}},
        ["stages.0.validation.monitor", "'a' has no metric 'cide'", "did you mean 'cider'?", "cider_d"],
    ),
    "metric of an evaluation that is not there": (
        {"stages.0.validation": WATCHED | {"monitor": "b/cider_d"}},
        ["stages.0.validation", "EVALUATION/METRIC with one of a"],
    ),
    "metric of rows without labels": (
        {
            "stages.0.validation": {
                "every": 1,
                "evaluations": [EVALUATION | {"source": {"manifest": "rows.jsonl"}}],
                "monitor": "a/cider_d",
            }
        },
        ["stages.0.validation.monitor", "no metric 'cider_d'", "its first row has no label"],
    ),
    "columns of a manifest": (
        {f"{TASK}.source": {"manifest": "rows.jsonl", "columns": {"caption": "text"}}},
        [f"{TASK}.source", "`columns` would not be used", "tsv or webdataset or huggingface, not manifest: rows.jsonl"],
    ),
    "styles of a manifest": (
        {f"{TASK}.source": {"manifest": "rows.jsonl", "styles": ["noto"]}},
        ["`styles` would not be used", "it belongs to world"],
    ),
    # impossible values
    "no rows": ({f"{GROUP}.rows": 0}, [f"{GROUP}.rows", "greater than 0", "got 0"]),
    "negative rate": ({"stages.0.optim.lr": -1e-4}, ["stages.0.optim.lr", "greater than 0", "-0.0001"]),
    "unknown schedule": ({"stages.0.optim.schedule": "linear"}, ["'linear'", "polynomial", "cosine", "constant"]),
    "unknown precision": ({"precision": "bf61"}, ["precision", "'bf61'", "did you mean 'bf16'?", "fp32"]),
    "unknown split": ({f"{TASK}.source.world": "tarin"}, ["source.world", "'tarin'", "did you mean 'train'?", "test"]),
    "unknown encoder to load": (
        {"encoder_weights": {"vido_encoder": "a.pt"}},
        ["unknown key", "did you mean 'video_encoder'?"],
    ),
    "one checkpoint only": ({"keep_checkpoints": 1}, ["keep_checkpoints", "greater than or equal to 2", "got 1"]),
    "stage in another folder": ({"stages.0.name": "../../evil"}, ["stages.0.name", "no slash", "'../../evil'"]),
    "two stages of a name": ({"stages.1.name": "image"}, ["two stages are called 'image'"]),
    "threads": ({"threads": 0}, ["threads", "greater than 0", "got 0"]),
    "seed": ({"seed": -1}, ["seed", "greater than or equal to 0", "got -1"]),
    "betas": ({"stages.0.optim.betas": [0.9, 1.5]}, ["stages.0.optim.betas.1", "less than 1", "got 1.5"]),
    "dropout": ({"model.dropout": 1.5}, ["[model]", "dropout", "1.5"]),
    "drop path": ({"model.drop_path": 2}, ["[model]", "drop_path is 2"]),
    "heads": ({"model.decoder_attention_heads": 3}, ["[model]", "d_model 16 is not a multiple of 3"]),
    "no heads": ({"model.decoder_attention_heads": 0}, ["[model]", "no model can be built"]),
    "no pixels": ({"processor.image_px": 0}, ["[processor]", "image_px is 0", "above 0"]),
    "pictures beyond the positions": (
        {f"{GROUP}.image_px": 2000},
        [f"{GROUP}, image_px 2000", "a feature map of 250x250", "6x6"],
    ),
    "clips of an evaluation beyond the positions": (
        {"evaluations": [EVALUATION | {"task_args": {"modality": "video"}, "processor": {"video_px": 800}}]},
        ["evaluations.0.processor, video_px 800", "a feature map of", "6x6"],
    ),
    # left out
    "no run folder": ({"out": None}, ["'out' is required"]),
    "no stages": ({"stages": None}, ["'stages' is required"]),
    "empty mixture": ({f"{GROUP}.tasks": []}, [f"{GROUP}.tasks", "at least 1 item", "[]"]),
    "no source": ({TASK: {"task": "caption"}}, [f"'{TASK}.source' is required"]),
    # combinations that cannot be
    "two sources": (
        {f"{TASK}.source.manifest": "a.jsonl"},
        [f"{TASK}.source", "exactly one of", "`manifest`", "a.jsonl"],
    ),
    "steps and epochs": ({"stages.0.epochs": 2}, ["stages.0", "exactly one of `steps` and `epochs`"]),
    "share of a pool": (
        {f"{GROUP}.mixing": "proportional", f"{TASK}.share": 3},
        [GROUP, "no `share`", "proportional"],
    ),
    "turn that never comes": ({f"{TASK}.offset": 2}, [GROUP, "`offset`", "below its `every`"]),
    "two modalities": (
        {"stages.1.groups.1.tasks.1": {"task": "caption", "source": {"world": "train"}}},
        ["stages.1.groups.1", "image", "video", "its own group"],
    ),
    "no encoder": ({TASK: VIDEO}, [TASK, "'caption'", "shows videos", "video_encoder"]),
    "size of no medium": ({f"{GROUP}.num_frames": 16}, [GROUP, "num_frames is 16", "no videos", "image"]),
    "BART and a start": (
        {"init": "unival-tiny", "bart_weights": "bart", "model": {}},
        ["bart_weights", "'bart'", "init"],
    ),
    "rows that cannot be cut": ({"accumulation": 3}, [f"{GROUP}.rows", "2 rows", "3 passes", "divides 2"]),
    "tokens that are not sampled yet": (
        {"accumulation": 2, "stages.0.objective": {"name": "self_critical", "args": {"rewards": {"brevity": 1.0}}}},
        ["stages.0.objective.args.normalise", "`accumulation: 2`", "`normalise: sequence`"],
    ),
    "samples that weigh nothing": (
        {
            "accumulation": 2,
            "stages.0.objective": {
                "name": "reward_weighted",
                "args": {"rewards": {"brevity": 1.0}, "samples": 2, "keep": 0.2, "normalise": "sequence"},
            },
        },
        ["stages.0.objective.args.keep", "samples of a pass a share of 0.2 is kept", "more `rows`"],
    ),
    "schedule shorter than its stage": (
        {"stages.0.optim.schedule_steps": 1},
        ["stages.0.optim.schedule_steps", "1, and the stage has", "leave it out"],
    ),
    "all frozen": ({"stages.0.freeze": ["encoder", "decoder"]}, ["stages.0", "nothing is left to train", "freeze"]),
    # names of things that do not exist
    "task": ({f"{TASK}.task": "captoin"}, [TASK, "'captoin'", "did you mean 'caption'?", "vqa"]),
    "task argument": ({f"{TASK}.task_args": {"promt": "what?"}}, [TASK, "'promt'", "did you mean 'prompt'?"]),
    "modality": ({f"{TASK}.task_args": {"modality": "picture"}}, [TASK, "modality", "'picture'", "'image'"]),
    "content of the world": ({f"{TASK}.source.content": "captions"}, [TASK, "'captions'", "did you mean 'caption'?"]),
    "objective": (
        {"stages.0.objective.name": "cross_entropie"},
        ["objective", "did you mean 'cross_entropy'?", "grpo"],
    ),
    "objective argument": (
        {"stages.0.objective.args": {"label_smooth": 0.1}},
        ["stages.0.objective", "'label_smooth'", "did you mean 'label_smoothing'?", "log_end"],
    ),
    "objective value": ({"stages.0.objective.args": {"label_smoothing": 1.5}}, ["objective", "label_smoothing is 1.5"]),
    "count of an objective": (
        {"stages.0.objective.args": {"ignore_prefix": -1}},
        ["stages.0.objective", "ignore_prefix is -1", "at least 0"],
    ),
    "range of an objective": (
        {"stages.0.objective.args": {"constraint_range": [10, 5]}},
        ["stages.0.objective", "constraint_range is 10, 5", "first < end"],
    ),
    "range beyond the vocabulary": (
        {"stages.0.objective.args": {"constraint_range": [10, 9999]}},
        ["stages.0.objective", "constraint_range is 10, 9999", "<= 326"],
    ),
    "choice of an objective that samples": (
        {"stages.0.objective": {"name": "self_critical", "args": {"rewards": {"brevity": 1.0}, "baseline": "foo"}}},
        ["stages.0.objective", "unknown baseline 'foo'", "others"],
    ),
    "fraction of a sample": (
        {"stages.0.objective": {"name": "grpo", "args": {"rewards": {"brevity": 1.0}, "samples": 2.5}}},
        ["stages.0.objective", "args.samples is 2.5", "whole number"],
    ),
    "start of an objective": (
        {"stages.0.objective": {"name": "grpo", "args": {"rewards": {"brevity": 1.0}, "kl": 0.1, "start": "models/a"}}},
        ["stages.0.objective.args.start", "no such model folder: models/a"],
    ),
    "objective type": ({"stages.0.objective.args": {"log_end": "late"}}, ["objective", "expected numbers", "'late'"]),
    "reward": (
        {"stages.0.objective": {"name": "grpo", "args": {"rewards": {"cider": 1.0}}}},
        ["objective.args.rewards", "'cider'", "did you mean 'cider_d'?", "brevity"],
    ),
    "model of a reward": (
        {
            "stages.0.objective.name": "grpo",
            "stages.0.objective.args": {
                "rewards": {"sentence_similarity": 1.0},
                "reward_args": {"sentence_similarity": {"folder": "models/absent"}},
            },
        },
        [
            "objective.args.rewards",
            "no model in 'models/absent'",
            "reward sentence_similarity",
            "nothing is downloaded",
        ],
    ),
    "reward without its model": (
        {"stages.0.objective": {"name": "grpo", "args": {"rewards": {"clip_score": 2.5}}}},
        ["objective.args.rewards", "'codec' is missing", "reward clip_score"],
    ),
    "argument of a reward": (
        {
            "stages.0.objective.name": "grpo",
            "stages.0.objective.args": {"rewards": {"brevity": 1.0}, "reward_args": {"brevity": {"max_words": "9"}}},
        },
        ["objective.args.rewards", "max_words is '9', not a whole number"],
    ),
    "task of an answer": (
        {"stages.0.objective.args": {"answers": {"captoin": ["a cat"]}}},
        ["stages.0.objective.args.answers", "no task 'captoin'", "did you mean 'caption'?"],
    ),
    "answers without a task": (
        {"stages.0.objective.args": {"answers": ["yes", "no"]}},
        ["stages.0.objective", "answers", "['yes', 'no']", "{vqa: [yes, no]}"],
    ),
    "truth in quotes": (
        {"stages.0.objective.args": {"ignore_eos": "false"}},
        ["stages.0.objective", "args.ignore_eos is 'false'", "give true or false"],
    ),
    "list of rewards": (
        {"stages.0.objective": {"name": "grpo", "args": {"rewards": ["brevity"]}}},
        ["stages.0.objective", "rewards", "['brevity']", "{cider_d: 1.0}"],
    ),
    "one reward": (
        {"stages.0.objective": {"name": "grpo", "args": {"rewards": "brevity"}}},
        ["stages.0.objective", "rewards is 'brevity'", "{cider_d: 1.0}"],
    ),
    "arguments of rewards": (
        {"stages.0.objective": {"name": "grpo", "args": {"rewards": {"brevity": 1}, "reward_args": {"brevity": 9}}}},
        ["stages.0.objective", "reward_args.brevity is 9"],
    ),
    "start of another vocabulary": (
        {
            "stages.0.objective.name": "grpo",
            "stages.0.objective.args": {"rewards": {"brevity": 1.0}, "kl": 0.1, "start": "unival-tiny-pictures"},
        },
        ["stages.0.objective.args.start", "unival-tiny-pictures has a vocabulary of", "the same as `init`"],
    ),
    "option of the world": (
        {f"{TASK}.source.options": {"seed": "abc"}},
        [f"{TASK}.source", "options.seed is 'abc'", "a whole number"],
    ),
    "truth for a rate": ({"stages.0.optim.lr": True}, ["stages.0.optim.lr", "a number", "got true"]),
    "truth for a count": ({"stages.0.steps": True}, ["stages.0.steps", "a number", "got true"]),
    "vectors for Muon": (
        {"stages.0.optim.muon": ["encoder.layernorm_embedding"]},
        ["stages.0.optim", "'encoder.layernorm_embedding' names vectors only", "matrices"],
    ),
    "scale that never counts": (
        {"stages.0.optim.lr_scale": {"encoder": 0.1, "encoder.embed_images": 0.0}},
        ["stages.0.optim", "'encoder.embed_images' never counts: 'encoder' comes first", "longer beginning first"],
    ),
    "tokenizer and a start": (
        {"init": "unival-tiny", "model": {}, "tokenizer.path": "unival-tiny"},
        ["tokenizer.path", "'unival-tiny' is not used", "`init`"],
    ),
    "weights of an encoder that is there": (
        {"init": "unival-tiny", "model": {}, "encoder_weights": {"image_encoder": "resnet.pth"}},
        ["encoder_weights.image_encoder", "no such file: resnet.pth"],
    ),
    "sizes of a start": (
        {"init": "unival-tiny", "model": {"encoder_layers": 1}, "stages.1.add": {}},
        ["model", "change the shape of", "encoder.layers.1", "from scratch"],
    ),
    "turns that leave steps empty": (
        {f"{GROUP}.tasks": [{"task": "caption", "every": 8, "source": {"world": "train"}}]},
        [f"{GROUP}.rows", "some steps would have no example: 2 rows", "lower `every`"],
    ),
    "buckets of the world": ({f"{GROUP}.buckets": [24, 32]}, [f"{GROUP}.buckets", "embedded world", "leave them out"]),
    "layout of a table": (
        {f"{TASK}.source": {"tsv": "rows.jsonl", "columns": "captoin"}},
        [f"{TASK}.source.columns", "unknown layout 'captoin'", "did you mean 'caption'?"],
    ),
    "archives": (
        {f"{TASK}.source": {"webdataset": "rows.tar"}},
        [f"{TASK}.source.webdataset", "no such file: rows.tar", "rows.jsonl"],
    ),
    "model option": ({"model.d_modle": 32}, ["model", "'d_modle'", "did you mean 'd_model'?"]),
    "encoder option": (
        {"stages.1.add.video_encoder.depth": [1]},
        ["stages.1.add", "'depth'", "did you mean 'depths'?"],
    ),
    "encoder": ({"stages.1.add": {"vision_encoder": {}}}, ["stages.1.add", "'vision_encoder'", "video_encoder"]),
    "network": ({"model.image_encoder.name": "resnet81"}, ["image_encoder.name", "'resnet81'", "resnet18"]),
    "processor option": ({"processor.image_size": 96}, ["processor", "'image_size'", "image_px"]),
    "frozen part": (
        {"stages.0.freeze": ["encoder.embed_image."]},
        ["stages.0", "'encoder.embed_image.'", "encoder.embed_images"],
    ),
    "scaled part": (
        {"stages.0.optim.lr_scale": {"encodr": 0.1}},
        ["stages.0.optim", "lr_scale", "'encodr'", "did you mean 'encoder'?", "encoder.embed_images"],
    ),
    "negative scale": ({"stages.0.optim.lr_scale": {"encoder": -1}}, ["lr_scale.encoder", "-1", "greater"]),
    "endless rate": ({"stages.0.optim.lr": float("inf")}, ["stages.0.optim.lr", "finite"]),
    "no folder": ({"out": ""}, ["out", "at least 1 character"]),
    "reranking": ({"evaluations": [EVALUATION | {"rerank": {"reward": "nope"}}]}, ["evaluations.0.rerank", "'nope'"]),
    "search option": (
        {"evaluations": [EVALUATION | {"search": {"num_beams": 5}}]},
        ["evaluations.0.search", "'num_beams'", "beam"],
    ),
    "search type": ({"evaluations": [EVALUATION | {"search": {"beam": "five"}}]}, ["evaluations.0.search", "'five'"]),
    "length below none": (
        {"evaluations": [EVALUATION | {"search": {"max_len_b": -5}}]},
        ["evaluations.0.search", "min_len is", "longest length of -5", "raise `max_len_b`"],
    ),
    "lengths that cross": (
        {"evaluations": [EVALUATION | {"search": {"min_len": 50, "max_len_b": 3}}]},
        ["evaluations.0.search", "min_len is 50, above the longest length of 3"],
    ),
    "submission": (
        {"evaluations": [EVALUATION | {"submission": "coc"}]},
        ["evaluations.0.submission", "did you mean 'coco'?"],
    ),
    "second of a name": ({"evaluations": [EVALUATION, EVALUATION]}, ["evaluations.1.name", "'a' is taken"]),
    # missing files
    "built-in model": ({"init": "unival-tniy", "model": {}}, ["init", "unival-tniy", "unival-tiny"]),
    "rows": (
        {f"{TASK}.source": {"manifest": "rowz.jsonl"}},
        ["source.manifest", "rowz.jsonl", "did you mean 'rows.jsonl'?"],
    ),
    "rows under the root": (
        {f"{TASK}.source": {"manifest": "$data/coco/train.jsonl"}},
        ["data/coco/train.jsonl", "data.root"],
    ),
    "answers": ({f"{TASK}.task_args": {"candidates_file": "answers.txt"}}, ["candidates_file", "answers.txt"]),
    "words": ({"tokenizer.bpe": "bart"}, ["tokenizer.bpe", "no such file: bart"]),
    "encoder weights": (
        {"encoder_weights": {"image_encoder": "resnet.pth"}},
        ["encoder_weights.image_encoder", "resnet.pth"],
    ),
    "checkpoint": ({"resume": "rows/step-0000500"}, ["resume", "rows/step-0000500"]),
    "run folder where nothing can be written": ({"out": "/proc/x"}, ["[out]", "'/proc/x' cannot be written"]),
    "run folder is a file": ({"out": "rows.jsonl"}, ["out", "'rows.jsonl' is not a folder"]),
}


def settings(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a small run with some values changed, by dotted key."""
    run = copy.deepcopy(tiny.run_settings(Path("run")))
    for key, value in changes.items():
        node: Any = run
        *parents, last = key.split(".")
        for name in parents:
            node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
        if isinstance(node, list):
            node[int(last) : int(last) + 1] = [value]
        elif value is None:
            del node[last]
        else:
            node[last] = value
    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_run_that_the_mistakes_are_made_in_is_right(folder: Path) -> None:
    (folder / "run.yaml").write_text(write_yaml(settings({})), encoding="utf-8")
    check_run(load_config(folder / "run.yaml", [], RunConfig))


@pytest.mark.parametrize(("changes", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_explained_and_nothing_is_written(
    folder: Path, changes: dict[str, Any], expected: list[str]
) -> None:
    (folder / "run.yaml").write_text(write_yaml(settings(changes)), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        check_run(load_config(folder / "run.yaml", [], RunConfig))
    message = str(caught.value)
    assert [part for part in expected if part not in message] == [], message
    assert len(caught.value.lines()) <= 3
    assert sorted(path.name for path in folder.iterdir()) == ["rows.jsonl", "run.yaml"]


SAMPLING = {"stages.0.objective": {"name": "grpo", "args": {"rewards": {"brevity": 1.0}}}}
SHARED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "rows": ({f"{GROUP}.rows": 3}, [f"{GROUP}.rows", "3 rows a step cannot be cut into 2 processes"]),
    "sampling in shards": (SAMPLING | {"parallel": {"kind": "fsdp"}}, ["parallel.reshard", "samples", "reshard=false"]),
    "Muon in shards": (
        {"stages.0.optim": {"muon": ["encoder.layers"]}, "parallel": {"kind": "fsdp"}},
        ["stages.0.optim.muon", "whole matrices", "ddp"],
    ),
}


@pytest.mark.parametrize(("changes", "expected"), SHARED.values(), ids=SHARED)
def test_what_two_processes_cannot_do_is_said_before_they_begin(changes: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check_run(RunConfig.model_validate(settings(changes)), processes=2)
    assert [part for part in expected if part not in str(caught.value)] == [], str(caught.value)
    check_run(RunConfig.model_validate(settings(changes)), processes=1)


def test_what_changed_in_a_continued_run_is_listed_and_the_folder_of_data_may_change() -> None:
    def run(root: str, **changes: Any) -> RunConfig:
        evaluation = EVALUATION | {"source": {"manifest": "$data/rows.jsonl"}}
        return RunConfig.model_validate(settings({"data": {"root": root}, "evaluations": [evaluation]} | changes))

    check_same(run("data"), run("/scratch/7", threads=2), "x")
    changes = {"seed": 2, "stages.1.optim.lr": 0.5, "tokenizer.num_codes": 8, "precision": "bf16"}
    with pytest.raises(UserError) as caught:
        check_same(run("data"), run("/scratch/7", **changes), "runs/a/config.yaml")
    message = str(caught.value)
    assert "stages.1.optim.lr was 0.01 and is 0.5, " in message
    assert "and 2 more [runs/a/config.yaml]" in message
    assert "data" not in message


def test_tensorboard_is_missed_before_the_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tensorboard.*TensorBoard is not installed|not installed.*tensorboard"):
        check_run(RunConfig.model_validate(settings({"tensorboard": True})))


def test_a_missing_compiler_is_missed_before_the_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"(?s)torch compiles with 'no-such-compiler'.*compile=false"):
        check_run(RunConfig.model_validate(settings({"compile": True, "device": "cpu"})))
    check_run(RunConfig.model_validate(settings({"device": "cpu"})))


OVERRIDES = {
    "item that is not there": (["stages.5.steps=3"], ["'stages' is a list and has no item '5'", "valid items: 0 to 1"]),
    "no value": (["seed"], ["expected key.sub=value", "'seed'"]),
    "into a number": (["seed.a=1"], ["'seed' is 1, not a section"]),
}


@pytest.mark.parametrize(("overrides", "expected"), OVERRIDES.values(), ids=OVERRIDES)
def test_a_mistake_in_an_override_is_explained(folder: Path, overrides: list[str], expected: list[str]) -> None:
    (folder / "run.yaml").write_text(write_yaml(settings({"seed": 1})), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_config(folder / "run.yaml", overrides, RunConfig)
    assert [part for part in expected if part not in str(caught.value)] == [], str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "run.yaml", "precision=fp8"], "precision"),
        (["train", "run.yaml", "stages.0.objective.name=cross"], "cross_entropy"),
        (["plan", "rum.yaml"], "did you mean 'run.yaml'?"),
    ],
)
def test_the_command_line_exits_with_2_and_writes_nothing(folder: Path, arguments: list[str], expected: str) -> None:
    (folder / "run.yaml").write_text(write_yaml(settings({})), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "unival", *arguments], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["rows.jsonl", "run.yaml"]
