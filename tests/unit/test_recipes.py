"""The recipes of the paper: every file loads, names things that exist, and holds the numbers of the specification."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from soups.recipes.file import RecipeSection
from tests import tiny
from unival.config import load_config
from unival.evaluation.submission import KINDS
from unival.generate import SearchOptions
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.objectives.base import objective_class
from unival.planning.plan import SizesFile
from unival.schema import EvaluationConfig, RunConfig, StageConfig, TaskEntry
from unival.tasks.base import get_task
from unival.training.check import MEDIA_SIZES
from unival.training.optim import freeze, learning_rate
from unival.yaml12 import parse_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNS = sorted(
    path
    for folder in ("pretrain", "finetune", "averaging/ratatouille", "averaging/fusing")
    for path in (CONFIGS / folder).rglob("*.yaml")
    if not path.name.startswith("_")
)
MERGES = sorted((CONFIGS / "averaging" / "merge").glob("*.yaml"))


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def load(name: str, *overrides: str) -> RunConfig:
    return load_config(CONFIGS / f"{name}.yaml", list(overrides), RunConfig)


def evaluations(config: RunConfig) -> list[EvaluationConfig]:
    inner = [stage.validation.evaluations for stage in config.stages if stage.validation is not None]
    return [*config.evaluations, *(evaluation for found in inner for evaluation in found)]


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_a_recipe_loads_and_names_things_that_exist(path: Path) -> None:
    config = load_config(path, [], RunConfig)
    entries: list[TaskEntry | EvaluationConfig] = list(evaluations(config))
    for stage in config.stages:
        objective_class(stage.objective.name, stage.objective.args)
        entries += [entry for group in stage.groups for entry in group.tasks]
        for group in stage.groups:
            assert len({get_task(entry.task, entry.task_args).modality for entry in group.tasks}) == 1
    for entry in entries:
        get_task(entry.task, entry.task_args)
    for evaluation in evaluations(config):
        SearchOptions.from_original(evaluation.search)
        assert evaluation.submission in (None, *KINDS)


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_a_recipe_trains_validates_evaluates_and_saves_media_of_one_size(path: Path) -> None:
    """The run's own, whatever the model it starts from was trained at; what it saves is then right for others, too."""
    config = load_config(path, [], RunConfig)
    groups = [group for stage in config.stages for group in stage.groups]
    assert all(getattr(group, name) is None for group in groups for name in MEDIA_SIZES)
    assert not any(evaluation.processor for evaluation in evaluations(config))
    entries = [entry for group in groups for entry in group.tasks]
    modalities = {get_task(entry.task, entry.task_args).modality for entry in entries}
    assert {name for name, modality in MEDIA_SIZES.items() if modality in modalities} <= config.processor.keys()


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_a_recipe_says_on_top_what_it_is_how_it_is_run_and_where_its_results_go(path: Path) -> None:
    name = name_of(path)
    text = path.read_text(encoding="utf-8")
    top = text[: text.index("\nextends:") if "\nextends:" in text else 0]
    if name.startswith("pretrain/tiny"):  # their own files say how
        return
    assert f"configs/{name}.yaml" in top
    assert top.startswith("# ")
    assert load(name).out == f"runs/{name}"


@pytest.fixture(scope="module")
def full_model() -> UnivalForConditionalGeneration:
    """The image, video and audio model as shapes."""
    sizes = load_config(CONFIGS / "model" / "base_audio.yaml", [], SizesFile)
    with torch.device("meta"):
        counts: dict[str, Any] = {"vocab_size": 59457, "num_codes": 8192, "num_bins": 1000}
        return UnivalForConditionalGeneration(UnivalConfig(**counts, **sizes.model))


def test_what_a_recipe_freezes_or_trains_are_parts_of_the_model(full_model: UnivalForConditionalGeneration) -> None:
    tuned = {"adapter_dim": 8, "adapter_per_modality": True, "encoder_prompt_length": 4, "decoder_prompt_length": 4}
    small = tiny.build_model(**tuned, lora_rank=2)
    for path in RUNS:
        config = load_config(path, [], RunConfig)
        is_tuned = bool(config.model.keys() & {*tuned, "lora_rank"})
        for stage in config.stages:
            if "tiny" not in path.name:
                freeze(small if is_tuned else full_model, stage)


def trained(model: UnivalForConditionalGeneration, stage: StageConfig, without: str) -> int:
    """Count what a stage trains in a model without some encoder."""
    freeze(model, stage)
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and without not in name)


def test_only_linear_and_frozen_embeddings_train_what_the_specification_counts(
    full_model: UnivalForConditionalGeneration,
) -> None:
    # Section 2.10, for the image + video model.
    linear = load("finetune/caption/coco_only_linear_s2").stages[0]
    assert trained(full_model, linear, "audio") == 5_858_304
    frozen = load("finetune/caption/coco").stages[0]
    # The original counts the classifier, which nobody trains, among the trainable ones.
    assert trained(full_model, frozen, "audio") == 204_826_096 - 2_049_000


class Row(NamedTuple):
    """A row of specification 6.2: loss, optimisation, batch, length, size and what is frozen."""

    is_encouraging: bool
    smoothing: float
    lr: float
    batch: int
    epochs: int
    warmup: float
    size: dict[str, int]
    is_frozen: bool
    ema: bool = False


TABLE = {
    "caption/coco": Row(True, 0.1, 1e-5, 128, 10, 0.06, {"image_px": 480}, True),
    "vqa/vqav2": Row(False, 0.1, 1e-4, 256, 20, 0.04, {"image_px": 480}, True, True),
    "grounding/refcoco": Row(False, 0.1, 5e-5, 256, 10, 0.06, {"image_px": 512}, False),
    "grounding/refcocoplus": Row(False, 0.1, 5e-5, 256, 10, 0.06, {"image_px": 512}, False),
    "grounding/refcocog": Row(False, 0.1, 5e-5, 256, 10, 0.06, {"image_px": 512}, False),
    "entailment/snli_ve": Row(False, 0.0, 5e-5, 256, 10, 0.06, {"image_px": 480}, False),
    "video_caption/msrvtt": Row(True, 0.1, 1e-5, 256, 20, 0.06, {"num_frames": 16, "video_px": 384}, True),
    "video_caption/activitynet": Row(True, 0.1, 3e-5, 256, 25, 0.06, {"num_frames": 16, "video_px": 384}, True),
    "video_vqa/msrvtt": Row(True, 0.1, 1e-4, 256, 35, 0.04, {"num_frames": 8, "video_px": 384}, True, True),
    "video_vqa/msvd": Row(True, 0.1, 1e-4, 256, 40, 0.04, {"num_frames": 8, "video_px": 384}, True, True),
    "audio_caption/audiocaps": Row(True, 0.1, 1e-4, 128, 25, 0.06, {}, True),
    "audio_caption/clotho": Row(True, 0.1, 5e-5, 128, 25, 0.06, {}, True),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_fine_tuning_recipe_has_the_numbers_of_the_table(name: str) -> None:
    row, config = TABLE[name], load(f"finetune/{name}")
    (stage,) = config.stages
    (group,) = stage.groups
    args = stage.objective.args
    assert stage.objective.name == "cross_entropy"
    assert args["label_smoothing"] == row.smoothing
    if row.is_encouraging:
        assert (args["log_end"], args["drop_worst_ratio"], args["drop_worst_after"]) == (0.75, 0.05, 6000)
    else:
        assert not {"log_end", "drop_worst_ratio"} & args.keys()
    assert (stage.optim.lr, stage.optim.warmup_ratio, stage.epochs, group.rows) == (
        row.lr,
        row.warmup,
        row.epochs,
        row.batch,
    )
    assert stage.freeze == (["encoder.embed_tokens"] if row.is_frozen else [])
    assert config.processor == row.size
    assert (config.ema is not None and config.ema.evaluate and config.ema.decay == 0.9999) == row.ema
    assert config.init == "models/unival_s2_hs"
    check_shared(stage, clip_norm=1.0, window=512)
    assert (config.model["dropout"], config.model["drop_path"]) == (0.1, 0.1)
    assert stage.validation is not None
    # After every epoch as well: 2,000 updates are 33 epochs of MSVD-QA and more than a whole run of Clotho.
    assert stage.validation.every == [50000 if name == "entailment/snli_ve" else 2000]
    assert stage.validation.every_epochs == 1


def check_shared(stage: StageConfig, clip_norm: float, window: int) -> None:
    optim = stage.optim
    assert (optim.betas, optim.eps, optim.weight_decay) == ((0.9, 0.999), 1e-8, 0.01)
    assert (optim.schedule, optim.clip_norm, optim.loss_scale_window) == ("polynomial", clip_norm, window)


def test_text_to_image_has_the_numbers_of_the_table() -> None:
    (stage,) = load("finetune/text_to_image/coco").stages
    assert (stage.steps, stage.optim.lr, stage.optim.warmup_steps, stage.groups[0].rows) == (50_000, 1e-3, 2000, 512)
    assert stage.objective.args == {"label_smoothing": 0.0, "constraint_range": [50265, 58457]}
    check_shared(stage, clip_norm=1.0, window=256)
    config = load("finetune/text_to_image/coco_clip")
    (stage,) = config.stages
    assert (stage.steps, stage.optim.lr, stage.optim.warmup_steps, stage.groups[0].rows) == (5000, 1e-6, 0, 128)
    assert (config.model["dropout"], config.model["drop_path"], config.model["code_image_size"]) == (0.0, 0.0, 256)
    assert (stage.objective.args["samples"], stage.objective.args["baseline"]) == (5, "others")


ONLY_LINEAR = {  # specification 6.3: rate from stage 1 and from stage 2, batch, epochs
    "caption/coco": (5e-4, 5e-4, 16 * 2 * 8, 25),
    "video_caption/msrvtt": (1e-3, 1e-3, 16 * 2 * 8, 25),
    "audio_caption/audiocaps": (5e-3, 5e-4, 8 * 2 * 8, 25),
    "vqa/vqav2": (5e-4, 5e-4, 16 * 2 * 16, 25),
    "video_vqa/msrvtt": (1e-4, 1e-4, 8 * 2 * 16, 40),
}


@pytest.mark.parametrize("name", ONLY_LINEAR)
def test_an_only_linear_recipe_has_the_numbers_of_the_table(name: str) -> None:
    *rates, batch, epochs = ONLY_LINEAR[name]
    for start, rate, init in zip(("s1", "s2"), rates, ("models/unival_s1", "models/unival_s2_hs"), strict=True):
        config = load(f"finetune/{name}_only_linear_{start}")
        (stage,) = config.stages
        assert (stage.optim.lr, stage.groups[0].rows, stage.epochs, config.init) == (rate, batch, epochs, init)
        assert stage.freeze == []
        assert all(key.startswith("encoder.") and ("_proj" in key or "positions" in key) for key in stage.train_only)
        modality = get_task(stage.groups[0].tasks[0].task, stage.groups[0].tasks[0].task_args).modality
        assert f"encoder.{modality}_proj" in stage.train_only
        # Stage 1 has no video encoder, so clips need it to join.
        assert ("video_encoder" in stage.add) == (start == "s1" and modality == "video")


def test_the_curriculum_has_the_numbers_of_the_specification() -> None:
    one, two, high = (load(f"pretrain/{name}") for name in ("stage1", "stage2", "stage2_highres"))
    for config, lr, steps, planned in (
        (one, 2e-4, 150_000, 500_000),
        (two, 1e-4, 90_000, 562_500),
        (high, 5e-5, 11_250, 562_500),
    ):
        (stage,) = config.stages
        assert (stage.optim.lr, stage.steps, stage.optim.schedule_steps) == (lr, steps, planned)
        assert stage.optim.warmup_ratio == 0.01
        assert stage.objective.name == "cross_entropy"
        assert stage.objective.args["label_smoothing"] == 0.0
        assert stage.objective.args.get("normalise", "token") == ("token" if config is one else "batch")
        assert (config.model["dropout"], config.model["drop_path"]) == (0.1, 0.1)
        assert config.ema is None
        check_shared(stage, clip_norm=5.0, window=128)
        warmup = int(planned * 0.01)
        assert learning_rate(stage.optim, warmup - 1, stage.steps) == pytest.approx(lr)
        assert learning_rate(stage.optim, stage.steps, stage.steps) == pytest.approx(
            lr * (1 - (stage.steps - warmup) / (planned - warmup))
        )
    assert one.init is None
    assert one.bart_weights is not None
    assert one.model["video_encoder"] is None
    assert "a1h" in one.encoder_weights["image_encoder"]
    assert two.init == "runs/pretrain/stage1/model"
    assert list(two.stages[0].add) == ["video_encoder"]
    assert high.init == "runs/pretrain/stage2/model"
    assert not high.stages[0].add
    sizes = [config.processor for config in (one, two, high)]
    assert [(size["image_px"], size["video_px"], size["num_frames"]) for size in sizes] == [
        (384, 224, 8),
        (384, 224, 8),
        (480, 384, 16),
    ]


def examples(config: RunConfig) -> list[float]:
    """Return the examples per update of each group."""
    groups = config.stages[0].groups
    return [group.rows * sum(entry.share / entry.every for entry in group.tasks) for group in groups]


def test_the_curriculum_has_the_examples_of_the_specification() -> None:
    assert examples(load("pretrain/stage1")) == [3200]
    assert [load("pretrain/stage1").stages[0].groups[0].rows] == [128 * 2 * 2]
    for name in ("stage2", "stage2_highres", "one_stage"):
        config = load(f"pretrain/{name}")
        assert examples(config) == pytest.approx([2048, 2048])
        assert [group.rows for group in config.stages[0].groups] == [128 * 4 * 2] * 2
    proportional = load("pretrain/proportional").stages[0].groups[0]
    assert (proportional.mixing, proportional.rows) == ("proportional", 3200)
    tasks = {(entry.task, entry.source.tsv) for entry in load("pretrain/stage1").stages[0].groups[0].tasks}
    assert {(entry.task, entry.source.tsv) for entry in proportional.tasks} == tasks


def test_data_lie_under_the_root() -> None:
    config = load("finetune/vqa/vqav2", "data.root=elsewhere")
    assert config.stages[0].groups[0].tasks[0].source.manifest == "elsewhere/vqav2/trainval.jsonl"
    assert config.stages[0].objective.args["answers"] == {"vqa": "elsewhere/vqav2/answers.txt"}
    assert config.evaluations[0].task_args["candidates_file"] == "elsewhere/vqav2/answers.txt"


RATATOUILLE = {  # specification 10.2: target and the tasks its runs begin with
    "caption": {"refcocoplus", "snli_ve", "vqa"},
    "refcocoplus": {"caption", "snli_ve", "vqa"},
    "snli_ve": {"caption", "refcocoplus", "vqa"},
    "vqa": {"caption", "snli_ve", "refcocoplus"},
    "video_caption": {"video_qa"},
    "video_qa": {"video_caption"},
}
DIRECT = {
    "caption": "caption/coco",
    "refcocoplus": "grounding/refcocoplus",
    "snli_ve": "entailment/snli_ve",
    "vqa": "vqa/vqav2",
    "video_caption": "video_caption/msrvtt",
    "video_qa": "video_vqa/msrvtt",
}


@pytest.mark.parametrize("target", RATATOUILLE)
def test_chains_of_fine_tuning_use_the_recipe_of_their_target(target: str) -> None:
    direct = load(f"finetune/{DIRECT[target]}")
    names = {f"ratatouille/{target}_from_{start}": start for start in RATATOUILLE[target]}
    found = {path.stem for path in (CONFIGS / "averaging" / "ratatouille").glob(f"{target}_from_*.yaml")}
    assert found == {name.split("/")[1] for name in names}
    for name, start in names.items():
        config = load(f"averaging/{name}")
        assert config.init == f"{load(f'finetune/{DIRECT[start]}').out}/model"
        assert (config.stages, config.evaluations) == (direct.stages, direct.evaluations)
        assert config.processor == direct.processor
    fused = load(f"averaging/fusing/{target}_from_average")
    assert (fused.stages, fused.processor) == (direct.stages, direct.processor)
    is_video = target.startswith("video")
    average = "video_caption_video_qa" if is_video else "caption_refcocoplus_snli_ve_vqa"
    assert fused.init == f"runs/averaging/{average}"
    assert CONFIGS / "averaging" / "merge" / f"{average}.yaml" in MERGES


@pytest.mark.parametrize("path", MERGES, ids=name_of)
def test_a_merge_takes_models_that_recipes_make(path: Path) -> None:
    recipe = parse_yaml(path.read_text(encoding="utf-8"))
    made = {f"{load_config(run, [], RunConfig).out}/model" for run in RUNS}
    made |= {f"runs/averaging/{merge.stem}" for merge in MERGES}
    assert set(recipe["models"].values()) <= made
    assert f"-o runs/averaging/{path.stem}" in path.read_text(encoding="utf-8")
    assert len(recipe["models"]) >= 2
    assert RecipeSection.model_validate(recipe).method == "linear"
