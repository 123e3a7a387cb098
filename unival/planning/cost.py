"""What a planned stage takes on named GPUs: memory, seconds, and what helps when it does not fit.

Times are estimates: data sheets, a share of the peak that is an assumption, and communication that hides behind the
backward pass (`docs/scaling.md`).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from unival.errors import UserError, did_you_mean
from unival.planning.plan import FLOAT, GB, StagePlan, estimate
from unival.schema import RunConfig


@dataclass(frozen=True, slots=True)
class Gpu:
    """Data sheet: dense TFLOP/s in bf16 or fp16 and in float32, GB of memory, GB/s of memory and to a neighbour.

    Those before 2020 have matrix units for fp16 only: `precision: auto` is float32 there (`autocast_dtype`).
    """

    bf16: float
    fp32: float
    memory: float
    bandwidth: float
    link: float
    has_bf16: bool = True

    def precision(self, asked: str) -> str:
        """Return what a run's `precision` is here."""
        return {"auto": "bf16" if self.has_bf16 else "fp32"}.get(asked, asked)

    def peak(self, precision: str) -> float:
        """Return TFLOP/s; without units for bf16 it is no faster than float32."""
        is_short = precision == "fp16" or (precision == "bf16" and self.has_bf16)
        return self.bf16 if is_short else self.fp32


GPUS = {
    "a100": Gpu(312, 19.5, 80, 2039, 300),
    "a100-40": Gpu(312, 19.5, 40, 1555, 300),
    "b200": Gpu(2250, 75, 180, 7700, 900),
    "h100": Gpu(989, 67, 80, 3350, 450),
    "h200": Gpu(989, 67, 141, 4800, 450),
    "l4": Gpu(121, 30, 24, 300, 32),
    "l40s": Gpu(362, 91, 48, 864, 32),
    "mi250x": Gpu(191, 24, 64, 1600, 50),  # one of its two dies: the paper's worker
    "rtx4090": Gpu(165, 83, 24, 1008, 32),
    "t4": Gpu(65, 8, 16, 300, 16, has_bf16=False),
    "v100": Gpu(125, 15.7, 32, 900, 150, has_bf16=False),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one way of running a stage takes on one device: bytes by purpose, seconds per update."""

    kind: str
    memory: dict[str, float]
    compute_seconds: float
    communication_seconds: float

    @property
    def bytes(self) -> float:
        """All memory."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        """Of an update: communication hides behind the backward pass, two thirds of the arithmetic."""
        return self.compute_seconds + max(0.0, self.communication_seconds - 2 / 3 * self.compute_seconds)


def cost(config: RunConfig, stage: StagePlan, gpu: Gpu, kind: str, world: int, efficiency: float) -> Cost:
    """Return what a stage takes on each of `world` devices.

    Args:
        config: Of the run.
        stage: Its plan for the same `world`.
        gpu: Data sheet.
        kind: `none`, `ddp` or `fsdp`.
        world: Processes.
        efficiency: Share of the peak arithmetic that is reached.
    """
    peak = gpu.peak(gpu.precision(config.precision))
    arithmetic = stage.flops / world / (peak * 1e12 * efficiency)
    accesses = 7 * FLOAT * stage.trained / (world if kind == "fsdp" else 1)  # bytes that AdamW reads and writes
    update = accesses / (gpu.bandwidth * GB)
    traffic = {"none": 0.0, "ddp": 2.0 * stage.trained, "fsdp": 2.0 * stage.total + stage.trained}[kind]
    if kind == "fsdp":
        traffic += (config.accumulation - 1) * 2.0 * (stage.total - stage.outside)  # layers are gathered in every pass
    communication = traffic * FLOAT * (world - 1) / world / (gpu.link * GB)
    memory = stage.memory(kind, world, config.ema is not None)
    return Cost(kind, memory, arithmetic + update, communication)


def does_not_fit(config: RunConfig, world: int, kind: str, available: int) -> str | None:
    """Return a warning when a run needs more memory than a device has, with what helps; None when it fits.

    Args:
        config: Of the run.
        world, kind: Processes and how they share the model: `none`, `ddp` or `fsdp`.
        available: Bytes of one device.
    """
    for stage in estimate(config, world):
        memory = stage.memory(kind, world, config.ema is not None)
        total = sum(memory.values())
        if total > available:
            most = max(memory, key=lambda name: memory[name])
            return (
                f"stage {stage.name} needs about {total / GB:.1f} GB per device ({most} {memory[most] / GB:.1f} GB), "
                f"there are {available / GB:.1f} GB: {advice(config, stage, kind, world, available)}"
            )
    return None


def advice(config: RunConfig, stage: StagePlan, kind: str, world: int, available: float) -> str:
    """Say what would make a stage fit."""
    memory = stage.memory(kind, world, config.ema is not None)
    states = sum(memory.values()) - memory["activations"]
    if states < available:
        needed = math.ceil(config.accumulation * memory["activations"] / (available - states))
        rows = math.gcd(*(group.rows for group in stage.groups))
        passes = next((passes for passes in range(needed, rows + 1) if rows % passes == 0), None)
        ways = [] if passes is None else [f"raise `accumulation` to {passes}"]
        ways += [] if config.checkpoint_activations else ["set `checkpoint_activations=true`"]
        return ", or ".join(ways or ["show smaller media, or freeze parts"])
    if kind != "fsdp" and world > 1:
        return "set `parallel.kind=fsdp`, or freeze parts"
    return "use more processes with `parallel.kind=fsdp`, or freeze parts"


def find_gpu(name: str) -> Gpu:
    """Return a data sheet by name.

    Raises:
        UserError: If there is none.
    """
    if name not in GPUS:
        raise UserError(f"unknown GPU {name!r}", where="--gpu", fix=did_you_mean(name, GPUS))
    return GPUS[name]


def report(config: RunConfig, gpu_name: str, world: int, efficiency: float) -> dict[str, Any]:
    """Return everything as one JSON object: stages, each with its groups and what DDP and FSDP2 take."""
    gpu = find_gpu(gpu_name)
    config = config.model_copy(update={"precision": gpu.precision(config.precision)})
    kinds = ["none"] if world == 1 else ["ddp", "fsdp"]
    stages = []
    for stage in estimate(config, world):
        costs = []
        for kind in kinds:
            found = cost(config, stage, gpu, kind, world, efficiency)
            fits = found.bytes <= gpu.memory * GB
            costs.append(
                asdict(found)
                | {"bytes": found.bytes, "seconds": found.seconds, "fits": fits}
                | {"hours": None if stage.steps is None else stage.steps * found.seconds / 3600}
                | {"advice": None if fits else advice(config, stage, kind, world, gpu.memory * GB)}
            )
        more = {"total": stage.total, "flops_per_example": stage.flops / stage.examples, "costs": costs}
        tokens = sum(group.tokens for group in stage.groups)
        stages.append(asdict(stage) | more | {"examples": stage.examples, "tokens": tokens})
    return {
        "gpu": {"name": gpu_name} | asdict(gpu),
        "world": world,
        "accumulation": config.accumulation,
        "precision": config.precision,
        "peak": gpu.peak(config.precision),
        "efficiency": efficiency,
        "stages": stages,
    }
