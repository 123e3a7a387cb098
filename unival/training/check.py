"""Everything about a configuration that can be known before anything is written or trained.

Each message names the key, the value, what is valid and what is close to it.
"""

import importlib.util
import inspect
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from unival.checkpoint import BUILT_IN_ENCODERS, resolve_model_dir
from unival.config_problem import at
from unival.data.mixture import RowSlice
from unival.data.source import open_source
from unival.errors import UserError, did_you_mean
from unival.evaluation.checks import metric_names
from unival.evaluation.submission import KINDS
from unival.generate import SearchOptions
from unival.log import no_tensorboard
from unival.model.modeling import MEDIA_INPUTS, UnivalForConditionalGeneration
from unival.model.processing import check_media
from unival.objectives._likelihood import allowed_ids
from unival.objectives.base import get_objective, objective_class
from unival.rewards import check_rewards, get_reward
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
from unival.training.building import refuse_unknown
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
                RowSlice(0, processes, config.accumulation).rows_per_pass(group.rows)
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
    with at("tokenizer.bpe"):
        if config.tokenizer.bpe is not None and config.init is not None:
            raise UserError(
                f"{config.tokenizer.bpe!r} is not used: `init` brings its tokenizer", fix="give one of them"
            )
        check_exists(config.tokenizer.bpe)
    with at("resume"):
        check_exists(None if config.resume == "auto" else config.resume)
    joining = {name for stage in config.stages for name in stage.add}
    if config.init is None:
        joining |= {name for name, options in config.model.items() if options is not None}
    for name, path in config.encoder_weights.items():
        if name in joining:  # those of others serve `unival.tiny.align_names`
            with at(f"encoder_weights.{name}"):
                check_exists(BUILT_IN_ENCODERS.get(path, path))


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
    if group.buckets and "image" in modalities:
        own["image_px"] = max(group.buckets)
    check_fits(network, task, model.media | own, key)


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
    if source.world is not None:
        with at(key):
            open_source(source, name, task.modality)


def check_schedule(stage: StageConfig, key: str) -> None:
    """Refuse a schedule that would end before its stage: the rate would be zero, or negative, from there on."""
    length = stage.optim.schedule_steps
    if length is not None and stage.epochs is None and length < stage.steps:
        raise UserError(f"{length}, and the stage has {stage.steps} steps", key, "leave it out, or give more")


def check_objective(stage: StageConfig, model: Sketch, key: str) -> None:
    """Refuse unknown objectives, arguments and rewards; values are checked where that needs no data."""
    args = stage.objective.args
    numbers = {name: value for name, value in args.items() if name not in ("answers", "rewards", "reward_args")}
    with at(key):
        cls = objective_class(stage.objective.name, args)
        for name, parameter in inspect.signature(cls).parameters.items():
            if type(parameter.default) is int and isinstance(numbers.get(name), float):
                raise UserError(f"args.{name} is {numbers[name]}", fix="give a whole number")
        try:
            get_objective(stage.objective.name, args, None, list)
            allowed_ids(args.get("constraint_range"), model.settings["vocab_size"], torch.device("cpu"))
        except TypeError:  # what comparing and counting raise
            wrong = {name: value for name, value in numbers.items() if isinstance(value, str | dict)}
            raise UserError(f"args: expected numbers, got {wrong}", fix="write numbers without quotes") from None
    if args.get("start") is not None:
        with at(f"{key}.args.start"):
            resolve_model_dir(str(args["start"]))
    answers = args.get("answers")
    for task, path in (answers if isinstance(answers, Mapping) else {}).items():
        if isinstance(path, str):
            with at(f"{key}.args.answers.{task}"):
                check_exists(BUILT_IN_ENCODERS.get(path, path))
    rewards = args.get("rewards")
    if isinstance(rewards, Mapping):
        with at(f"{key}.args.rewards"):
            check_rewards(rewards, args.get("reward_args"), given={"num_bins": 1})


def check_sampling(config: RunConfig, stage: StageConfig, processes: int, key: str) -> None:
    """Refuse ways of sharing the work that an objective which samples cannot have."""
    with at(key):
        cls = objective_class(stage.objective.name, stage.objective.args)
    if not hasattr(cls, "draw"):
        return
    args = stage.objective.args
    samples, keep = (args.get(name, getattr(cls, name, 0)) for name in ("samples", "keep"))
    for group in stage.groups if keep else ():
        shares = sum(entry.share for entry in group.tasks) if group.mixing == "balanced" else 1
        num = group.rows // (processes * config.accumulation) * shares * samples
        if round(num * keep) < 2:  # their minimum is taken off
            what = f"of the {num} samples of a pass a share of {keep:g} is kept: fewer than two weigh nothing"
            raise UserError(what, f"{key}.args.keep", "more `rows` or `samples`, or fewer passes and processes")
    normalise = args.get("normalise", getattr(cls, "normalise", None))
    if config.accumulation > 1 and normalise == "token":
        given = f"with `accumulation: {config.accumulation}`"
        what = f"{given} the first pass would have to be divided by tokens that later passes have yet to sample"
        raise UserError(what, f"{key}.args.normalise", "`normalise: sequence`, or `accumulation: 1`")
    if config.parallel.kind == "fsdp" and config.parallel.reshard and processes > 1:
        what = "FSDP2 cannot give up layers while an objective samples"
        raise UserError(what, "parallel.reshard", "`parallel.reshard=false`")


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
            check_search(evaluation.search)
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


def check_search(options: Mapping[str, Any]) -> None:
    """Refuse search options that do not exist or have the wrong type."""
    try:
        SearchOptions.from_original(options)
    except TypeError:
        wrong = {name: value for name, value in options.items() if isinstance(value, str | list | dict)}
        raise UserError(f"expected numbers, got {wrong}", fix="write numbers without quotes") from None


def check_exists(path: Any) -> None:
    """Refuse the path of a file or folder that is not there; None is no path."""
    if path is None or Path(path).exists():
        return
    parent = Path(path).parent
    if parent.is_dir():
        siblings = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
        raise UserError(f"no such file: {path}", fix=f"in {parent}: {did_you_mean(Path(path).name, siblings)}")
    raise UserError(f"no such file: {path}", fix=f"there is no folder {parent}; paths of data start at `data.root`")
