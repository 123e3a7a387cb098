"""What is refused where a run is continued, or starts from the checkpoint of another."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unival.errors import UserError
from unival.model.configuration import UnivalConfig
from unival.schema import EXECUTION, RunConfig
from unival.training.saving import problem_with, read_state
from unival.training.sketch import media_defaults

MAX_CHANGES = 3  # that a refusal lists


def check_same(old: RunConfig, new: RunConfig, where: str) -> None:
    """Refuse to continue a run that learns something else; data may lie under another `data.root` (a staged copy)."""
    before, after = (dict(leaves(config.model_dump(mode="json", exclude=set(EXECUTION)))) for config in (old, new))

    def differs(key: str) -> bool:
        values = before.get(key), after.get(key)
        relative = [below(value, config.data.root) for value, config in zip(values, (old, new), strict=True)]
        return values[0] != values[1] and relative[0] != relative[1]

    changed = [
        f"{key} was {before.get(key)!r} and is {after.get(key)!r}" for key in before | after if key and differs(key)
    ]
    if changed:
        more = f", and {len(changed) - MAX_CHANGES} more" if len(changed) > MAX_CHANGES else ""
        what = f"the run folder holds a run with another configuration: {', '.join(changed[:MAX_CHANGES])}{more}"
        raise UserError(what, where, "choose another `out=...`, or start over with --fresh")


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key of every value in a tree; what is empty is a value, too."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items:
        yield key, value
    for name, item in items:
        yield from leaves(item, f"{key}.{name}" if key else str(name))


def below(value: Any, root: str) -> Any:
    """Return a path under the root of data as it was written: `$data/...`."""
    is_below = isinstance(value, str) and Path(value).is_relative_to(root)
    return f"$data/{Path(value).relative_to(root)}" if is_below else value


def check_resume(config: RunConfig) -> None:
    """Refuse to start from a checkpoint that is damaged, behind the end of this run, or of another model."""
    if config.resume == "auto":
        return
    folder = Path(config.resume)
    problem = problem_with(folder) if folder.is_dir() else "it is no folder"
    if problem is not None:
        fix = "give a folder such as RUN/step-0000500, or `resume: auto`"
        raise UserError(f"resume: this checkpoint cannot be used: {problem}", str(folder), fix)
    check_progress(config, folder)
    state = read_state(folder)
    begun = config.stages[: state.stage + (state.step > 0)]
    given = {
        "model": config.model | {name: options for stage in begun for name, options in stage.add.items()},
        "processor": config.processor,
    }
    for section, file in (("model", "config.json"), ("processor", "processor_config.json")):
        stored = json.loads((folder / "model" / file).read_text(encoding="utf-8"))
        stored = (UnivalConfig().to_dict() if section == "model" else media_defaults()) | stored
        for name, value in given[section].items():
            if stored[name] != value:
                what = f"{section}.{name} is {value!r}, and {stored[name]!r} in the checkpoint, whose {section} is kept"
                fix = f"leave it as it was, or start anew from its weights: init={folder / 'model'} resume=auto"
                raise UserError(what, f"resume, {folder}", fix)


def check_progress(config: RunConfig, checkpoint: Path) -> None:
    """Refuse to start from a checkpoint after which this run has no step; stages of unknown length have one."""
    state = read_state(checkpoint)
    where, fix = f"resume, {checkpoint}", f"start from its weights: init={checkpoint / 'model'}"
    stands = f"the checkpoint stands at stage {state.stage + 1}, step {state.step}"
    if state.stage >= len(config.stages):
        what = f"{stands}, and this run ends with stage {len(config.stages)}: nothing is left"
        raise UserError(what, where, f"add a stage, or {fix}")
    before, made = config.stages[: state.stage], re.search(r"step-(\d+)$", str(checkpoint))
    place = sum(stage.steps for stage in before) + state.step
    if made is not None and int(made[1]) != place and all(stage.epochs is None for stage in before):
        what = f"{stands}, after {int(made[1])} steps; this run stands there after {place}"
        raise UserError(what, where, f"give the stages before it their `steps` again, or {fix}")
    stage = config.stages[state.stage]
    if stage.epochs is None and state.step >= stage.steps and not state.validating:
        what = f"{stands}, and stages.{state.stage}.steps is {stage.steps}: nothing is left of the stage"
        raise UserError(what, where, f"more `steps`, or {fix}")
