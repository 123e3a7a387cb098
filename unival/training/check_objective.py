"""What a configuration says of the objective of a stage, checked before anything is written; no data are read."""

from collections.abc import Callable, Mapping

import torch

from unival.checkpoint import read_config, resolve_model_dir
from unival.config_problem import at, check_exists, check_kinds
from unival.errors import UserError, did_you_mean
from unival.objectives._likelihood import allowed_ids
from unival.objectives.base import Objective, get_objective, objective_class
from unival.rewards import check_rewards
from unival.schema import RunConfig, StageConfig
from unival.tasks.base import get_task
from unival.training.sketch import Sketch


def check_objective(stage: StageConfig, model: Sketch, key: str) -> None:
    """Refuse unknown objectives, arguments and rewards; values are checked where that needs no data."""
    args = stage.objective.args
    with at(key):
        checked_class(stage)
        try:
            get_objective(stage.objective.name, args, None, list)
            allowed_ids(args.get("constraint_range"), model.settings["vocab_size"], torch.device("cpu"))
        except TypeError:  # what comparing and counting raise
            wrong = {name: value for name, value in args.items() if isinstance(value, str | dict)}
            raise UserError(f"args: expected numbers, got {wrong}", fix="write numbers without quotes") from None
    check_answers(stage, f"{key}.args.answers")
    if args.get("start") is not None:
        with at(f"{key}.args.start"):
            check_start_model(str(args["start"]), stage, model)
    if "rewards" in args:
        with at(f"{key}.args.rewards"):
            check_rewards(args["rewards"], args.get("reward_args"), given={"num_bins": 1})


def checked_class(stage: StageConfig) -> Callable[..., Objective]:
    """Return the class of the objective; its arguments are known and of the kinds of their defaults."""
    cls = objective_class(stage.objective.name, stage.objective.args)
    check_kinds(cls, stage.objective.args, "args.")
    return cls


def check_answers(stage: StageConfig, key: str) -> None:
    """Refuse closed answers of tasks that the stage does not have, and missing files."""
    answers = stage.objective.args.get("answers")
    tasks = {entry.task for group in stage.groups for entry in group.tasks}
    for task, path in (answers if isinstance(answers, Mapping) else {}).items():
        if task not in tasks:
            raise UserError(f"the stage has no task {task!r}", key, did_you_mean(task, tasks))
        if isinstance(path, str):
            with at(f"{key}.{task}"):
                check_exists(path)


def check_start_model(path: str, stage: StageConfig, model: Sketch) -> None:
    """Refuse a start model that cannot be compared with the one that is trained."""
    config = read_config(resolve_model_dir(path))
    if config.vocab_size != model.settings["vocab_size"]:
        what = (
            f"{path} has a vocabulary of {config.vocab_size}, the model that is trained {model.settings['vocab_size']}"
        )
        raise UserError(what, fix="give the same as `init` of the run")
    for group in stage.groups:
        modality = get_task(group.tasks[0].task, group.tasks[0].task_args).modality
        if modality != "text" and getattr(config, f"{modality}_encoder") is None:
            raise UserError(f"{path} has no {modality} encoder", fix="give the same as `init` of the run")


def check_sampling(config: RunConfig, stage: StageConfig, processes: int, key: str) -> None:
    """Refuse ways of sharing the work that an objective which samples cannot have."""
    with at(key):
        cls = checked_class(stage)
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
