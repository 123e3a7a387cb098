"""Everything about a configuration that can be known before anything is written or trained.

Each message names the key, the value, what is valid and what is close to it.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from unival.checkpoint import BUILT_IN_ENCODERS, read_config, resolve_model_dir
from unival.config_problem import at, check_exists
from unival.data.archive import expand
from unival.data.huggingface import check_package
from unival.data.mixture import BUCKET_FIELD, RowSlice, check_passes
from unival.data.source import open_source
from unival.data.table import column_numbers
from unival.errors import UserError, did_you_mean
from unival.evaluation.checks import metric_names
from unival.evaluation.submission import KINDS
from unival.generate import SearchOptions
from unival.log import no_tensorboard
from unival.model.modeling import MEDIA_INPUTS, UnivalForConditionalGeneration
from unival.model.processing import check_media
from unival.rewards import get_reward
from unival.schema import (
    EvaluationConfig,
    GroupConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TaskEntry,
    ValidationConfig,
)
from unival.tasks.base import Task, get_task
from unival.training.building import check_kept, refuse_unknown
from unival.training.check_objective import check_objective, check_sampling
from unival.training.check_resume import check_resume
from unival.training.optim import build_optimizer, freeze
from unival.training.sketch import Sketch, media_defaults, sketch

MEDIA_SIZES = {"image_px": "image", "video_px": "video", "num_frames": "video"}


def check_run(config: RunConfig, processes: int = 1) -> None:
    """Refuse a run that cannot work, whatever its data hold.

    Files of rows are looked for, not read, but for the first row that a monitored metric is about.

    Args:
        config: Of the run.
        processes: How many share the work.

    Raises:
        UserError: For the first problem, with its key.
    """
    check_execution(config, processes)
    check_start(config)
    stages = sketch(config)
    check_resume(config)
    check_shapes(config)
    for number, (stage, model) in enumerate(zip(config.stages, stages, strict=True)):
        key = f"stages.{number}"
        with at("model"):
            network = model.build()
        for index, group in enumerate(stage.groups):
            check_group(group, model, network, f"{key}.groups.{index}")
        check_objective(stage, model, f"{key}.objective")
        check_schedule(stage, f"{key}.optim.schedule_steps")
        check_patterns(stage, network, key)
        if stage.validation is not None:
            check_evaluations(stage.validation.evaluations, model, network, f"{key}.validation.evaluations")
            check_monitor(stage.validation, f"{key}.validation.monitor")
    check_evaluations(config.evaluations, stages[-1], network, "evaluations")


def check_execution(config: RunConfig, processes: int) -> None:
    """Refuse a way of carrying out a run that cannot work; it may be another one when the run is continued."""
    check_out(config.out)
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        with at("tensorboard"):
            raise no_tensorboard()
    check_compiler(config)
    for number, stage in enumerate(config.stages):
        key = f"stages.{number}"
        for index, group in enumerate(stage.groups):
            with at(f"{key}.groups.{index}.rows"):
                check_passes(group, RowSlice(0, processes, config.accumulation).rows_per_pass(group.rows))
        check_sampling(config, stage, processes, f"{key}.objective")
        if config.parallel.kind == "fsdp" and stage.optim.muon and processes > 1:
            raise UserError("Muon needs whole matrices", f"{key}.optim.muon", "use parallel.kind=ddp, or optim.muon=[]")


def check_out(out: str, key: str = "out") -> None:
    """Refuse a folder for results that cannot be made."""
    folder = Path(out)
    existing = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    with at(key):
        if not existing.is_dir():
            raise UserError(f"{out!r} is not a folder: {existing} is a file", fix=f"choose another `{key}`")
        try:  # permissions do not tell: not those of `root`, nor of a file system that is only read
            Path(tempfile.mkdtemp(prefix=".unival-", dir=existing)).rmdir()
        except OSError as error:
            what = f"{out!r} cannot be written: {error.strerror} in {existing}"
            raise UserError(what, fix=f"choose another `{key}`") from None


def check_compiler(config: RunConfig) -> None:
    """Refuse to compile for a processor without the compiler that torch calls."""
    is_used = config.compile and (config.device == "cpu" or not torch.cuda.is_available())
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if is_used and shutil.which(compiler) is None:
        with at("compile"):
            fix = f"install {compiler}, name another in the variable CXX, or compile=false"
            raise UserError(f"torch compiles with {compiler!r}, which is not on this machine", fix=fix)


def check_start(config: RunConfig) -> None:
    """Refuse weights and tokenizers that are missing, or that nothing would be done with."""
    with at("bart_weights"):
        if config.bart_weights is not None and config.init is not None:
            fix = "give one of them"
            raise UserError(f"{config.bart_weights!r} would replace what `init` ({config.init!r}) loads", fix=fix)
        check_exists(config.bart_weights)
    for name, path in (("bpe", config.tokenizer.bpe), ("path", config.tokenizer.path)):
        if path is not None and config.init is not None:
            what = f"{path!r} is not used: `init` brings its tokenizer"
            raise UserError(what, f"tokenizer.{name}", "give one of them")
    with at("tokenizer.bpe"):
        check_exists(config.tokenizer.bpe)
    with at("resume"):
        check_exists(None if config.resume == "auto" else config.resume)
    for name, path in config.encoder_weights.items():
        with at(f"encoder_weights.{name}"):
            check_exists(BUILT_IN_ENCODERS.get(path, path))


def check_shapes(config: RunConfig) -> None:
    """Refuse options of the model that change the shape of weights which `init` brings."""
    if config.init is not None and config.model:
        settings = read_config(resolve_model_dir(config.init)).to_dict()
        with at("model"):
            check_kept(*(Sketch(each, {}).build().state_dict() for each in (settings, settings | config.model)))


def check_group(group: GroupConfig, model: Sketch, network: UnivalForConditionalGeneration, key: str) -> None:
    """Refuse tasks that the model cannot learn, and sizes that nothing would use."""
    modalities: dict[str, str] = {}
    for index, entry in enumerate(group.tasks):
        task = check_task(entry, model, f"{key}.tasks.{index}")
        modalities.setdefault(task.modality, f"{entry.task}")
    if len(modalities) > 1:
        listed = " and ".join(f"{modality} ({task})" for modality, task in modalities.items())
        raise UserError(f"a group has one modality, got {listed}", key, "give each its own group")
    for name, modality in MEDIA_SIZES.items():
        if getattr(group, name) is not None and modality not in modalities:
            what = f"{name} is {getattr(group, name)}, but the group has no {modality}s"
            raise UserError(what, key, f"its modality is {next(iter(modalities))}: remove {name}")
    own = {name: size for name in MEDIA_SIZES if (size := getattr(group, name)) is not None}
    if group.buckets:
        check_buckets(group, task.modality, f"{key}.buckets")
        own |= {"image_px": max(group.buckets)} if "image" in modalities else {}
    check_fits(network, task, model.media | own, key)


def check_buckets(group: GroupConfig, modality: str, key: str) -> None:
    """Refuse buckets for rows that have no sizes."""
    if modality not in BUCKET_FIELD:
        raise UserError(f"they are for pictures and clips, not for {modality}", key, "leave them out")
    if any(entry.source.world is not None for entry in group.tasks):
        fix = "leave them out: its pictures have one size"
        raise UserError("rows of the embedded world do not say how large they are", key, fix)


def check_fits(network: UnivalForConditionalGeneration, task: Task, media: Mapping[str, Any], key: str) -> None:
    """Refuse pictures and clips whose feature map is larger than the position table."""
    name, shape = "image_px", (1, 3, media["image_px"], media["image_px"])
    if task.modality == "video":
        name, shape = "video_px", (1, 3, media["num_frames"], media["video_px"], media["video_px"])
    elif task.modality != "image":
        return
    with at(f"{key}, {name} {media[name]}"), torch.no_grad():
        network.encoder.encode_media(**{MEDIA_INPUTS[task.modality]: torch.empty(shape, device="meta")})


def check_task(entry: TaskEntry | EvaluationConfig, model: Sketch, key: str) -> Task:
    """Build a task from its arguments and look for the files it needs."""
    with at(key):
        task = get_task(entry.task, entry.task_args)
        if not model.has(task.modality):
            fix = f"add it: stages.N.add: {{{task.modality}_encoder: {{...}}}}, or `model.{task.modality}_encoder`"
            raise UserError(
                f"task {entry.task!r} shows {task.modality}s, and the model has no encoder for them", fix=fix
            )
    for name, value in entry.task_args.items():
        if name.endswith("_file") or name == "document_frequencies":
            with at(f"{key}.task_args.{name}"):
                check_exists(value)
    check_source(entry.source, entry.task, task, f"{key}.source")
    return task


def check_source(source: SourceConfig, name: str, task: Task, key: str) -> None:
    """Look for the file of rows; rows of the world are only described."""
    for kind in ("manifest", "tsv", "media_root"):
        with at(f"{key}.{kind}"):
            path = getattr(source, kind)
            check_exists(path)
            if kind != "media_root" and path is not None and Path(path).is_dir():
                raise UserError(f"{path} is a folder", fix="give the file of rows in it")
    if source.tsv is not None and not isinstance(source.columns, dict):
        with at(f"{key}.columns"):
            column_numbers(source.columns or "caption")
    if source.huggingface is not None:
        with at(f"{key}.huggingface"):
            check_package()
    with at(f"{key}.webdataset"):
        given = source.webdataset or ()
        for pattern in [given] if isinstance(given, str) else given:
            for path in expand(pattern):
                check_exists(path)
    if source.world is not None:
        with at(key):
            open_source(source, name, task.modality)


def check_schedule(stage: StageConfig, key: str) -> None:
    """Refuse a schedule that would end before its stage: the rate would be zero, or negative, from there on."""
    length = stage.optim.schedule_steps
    if length is not None and stage.epochs is None and length < stage.steps:
        raise UserError(f"{length}, and the stage has {stage.steps} steps", key, "leave it out, or give more")


def check_patterns(stage: StageConfig, network: UnivalForConditionalGeneration, key: str) -> None:
    """Refuse patterns that match no parameter."""
    with at(key):
        freeze(network, stage)
    with at(f"{key}.optim"):
        options = {"lr_scale": stage.optim.lr_scale, "muon": stage.optim.muon}
        build_optimizer(network, OptimConfig.model_validate(options))


def check_evaluations(
    evaluations: Iterable[EvaluationConfig], model: Sketch, network: UnivalForConditionalGeneration, key: str
) -> None:
    """Refuse evaluations that cannot run, or whose results would overwrite each other."""
    names: set[str] = set()
    for index, evaluation in enumerate(evaluations):
        place = f"{key}.{index}"
        if evaluation.name in names:
            raise UserError(f"the name {evaluation.name!r} is taken", f"{place}.name", "give each evaluation its own")
        names.add(evaluation.name)
        task = check_task(evaluation, model, place)
        with at(f"{place}.search"):
            check_search(evaluation.search, task)
        if evaluation.rerank is not None:
            with at(f"{place}.rerank"):
                get_reward(evaluation.rerank.reward, evaluation.rerank.args)
        with at(f"{place}.processor"):
            refuse_unknown("processor", evaluation.processor, media_defaults())
            check_media(evaluation.processor)
        check_fits(network, task, model.media | evaluation.processor, f"{place}.processor")
        with at(f"{place}.submission"):
            if evaluation.submission is not None and evaluation.submission not in KINDS:
                what = f"unknown submission format {evaluation.submission!r}"
                raise UserError(what, fix=did_you_mean(evaluation.submission, KINDS))


def check_monitor(validation: ValidationConfig, key: str) -> None:
    """Refuse to watch a metric that the first row of its evaluation does not have."""
    if validation.monitored is None:
        return
    evaluation, metric = validation.monitored
    with at(key):
        names = metric_names(evaluation)
        if metric not in names:
            what = f"the evaluation {evaluation.name!r} has no metric {metric!r}"
            raise UserError(what, fix=did_you_mean(metric, names) if names else "its first row has no label")


def check_search(options: Mapping[str, Any], task: Task) -> None:
    """Refuse search options that do not exist, have the wrong type, or leave no length."""
    lengths = {"min_len": task.min_new_tokens, "max_len_b": task.max_new_tokens - 1}
    try:
        chosen = SearchOptions.from_original(lengths | dict(options))
    except TypeError:
        wrong = {name: value for name, value in options.items() if isinstance(value, str | list | dict)}
        raise UserError(f"expected numbers, got {wrong}", fix="write numbers without quotes") from None
    is_known = chosen.max_len_a == 0 and not chosen.repeat_prompt and task.prompt_type == "none"  # without a prompt
    if is_known and chosen.min_len > chosen.max_len(0):
        what = f"min_len is {chosen.min_len}, above the longest length of {chosen.max_len(0)}"
        raise UserError(what, fix="lower `min_len`, or raise `max_len_b`")
