"""What a run may do and hardly means to do: said once, when a stage begins."""

from torch import nn

from unival.schema import RunConfig

BatchNorm = nn.modules.batchnorm._BatchNorm


def doubts(config: RunConfig, index: int, model: nn.Module) -> list[str]:
    """Return a line for each doubt about a stage.

    Args:
        config: Of the run, with all lengths in steps.
        index: Of the stage.
        model: As the stage trains it: what is frozen takes no gradient.
    """
    stage, found = config.stages[index], []
    warmup = stage.optim.warmup_steps or 0
    if warmup > stage.steps:
        found.append(f"the learning rate never reaches {stage.optim.lr:g}: {stage.steps} steps, {warmup} of warm-up")
    total = sum(each.steps for each in config.stages)
    if index == 0 and config.ema is not None and config.ema.start >= total:
        found.append(f"nothing is averaged: ema.start is {config.ema.start}, the run has {total} steps")
    if not stage.freeze_batchnorm:
        for name in moving(model):
            found.append(f"{name} is frozen, but its running statistics are not: freeze_batchnorm: true keeps them")
    return found


def moving(model: nn.Module) -> list[str]:
    """Return the media encoders of which no weight is trained and whose batch norms follow the data."""
    encoders = {f"encoder.{name}": part for name, part in model.get_submodule("encoder").named_children()}
    return [
        name
        for name, part in encoders.items()
        if not any(parameter.requires_grad for parameter in part.parameters())
        and any(isinstance(module, BatchNorm) and module.track_running_stats for module in part.modules())
    ]
