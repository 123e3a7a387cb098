"""What a run takes before it is started: parameters, memory, arithmetic and time per device.

Parameters, activations and arithmetic are measured by running the model of every stage on the meta device, which has
shapes and no numbers. Memory of optimizer and gradients follows from the numbers of parameters. Times are estimates
from data sheets of GPUs and a share of their peak that is an assumption (`docs/scaling.md`).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unival.batch import Modality
from unival.config import load_config
from unival.data.mixture import RowSlice, with_steps
from unival.errors import UserError
from unival.model.modeling import MediaTokens, UnivalForConditionalGeneration
from unival.planning.passes import FORWARD, Passes, passes_of
from unival.schema import GroupConfig, RunConfig, StageConfig, TokenizerConfig
from unival.sections import Section
from unival.tasks.base import get_task
from unival.training.optim import freeze
from unival.training.sketch import Sketch, sketch

GB = 10**9
FLOAT = 4  # bytes; weights, gradients and moments are float32 in every precision
MOMENTS = 2  # of AdamW
WORKING_BYTES = GB  # context, workspaces and what the allocator cannot use
MAX_LOGITS_BYTES = 128 * 2**20  # larger ones are computed in slices (`unival.objectives.cross_entropy`)
LOGITS_COPIES = 3  # logits, log-probabilities, their gradient
LENGTHS = {
    "caption": (8, 14),
    "vqa": (10, 4),
    "grounding": (14, 5),
    "grounded_caption": (12, 8),
    "entailment": (18, 2),
    "matching": (18, 2),
    "answer_verification": (20, 2),
}
"""Tokens of prompt and target per task, `</s>` included: typical of the paper's data."""
OTHER_LENGTH = (16, 16)
# Under autocast convolutions leave 2 bytes per number; in the Transformer norms and residuals stay float32.
SHORT_MEDIA, SHORT_TEXT = 0.5, 0.75


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """One group of a stage.

    Attributes:
        modality: Of its media.
        examples, media: Per update, over all processes.
        tokens: Of media, prompts and targets, per update.
        flops: Forward and backward, per update.
        rows: Per update of one process, which its passes share.
        activations: Bytes that one pass of one process keeps for the backward pass, in the precision of the run.
    """

    modality: Modality
    examples: float
    media: float
    tokens: float
    flops: float
    rows: int
    activations: float


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage.

    Attributes:
        name: Of the stage.
        steps: Updates; None when `epochs` counts rows that are not here.
        parameters: By part: encoders, projections and positions, Transformer, embedding.
        trained: Of all parameters.
        outside: Parameters outside of the Transformer's layers, which FSDP2 gathers for the whole pass.
        num_layers: Of the Transformer, both halves.
        stored: Parameters and buffers.
        start: Those of the start model that the objective compares with, whole in every process.
        groups: Of the stage.
    """

    name: str
    steps: int | None
    parameters: dict[str, int]
    trained: int
    outside: int
    num_layers: int
    stored: int
    start: int
    groups: tuple[GroupPlan, ...]

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    @property
    def flops(self) -> float:
        """Per update."""
        return sum(group.flops for group in self.groups)

    @property
    def examples(self) -> float:
        """Per update."""
        return sum(group.examples for group in self.groups)

    def memory(self, kind: str, world: int, has_average: bool) -> dict[str, float]:
        """Return bytes per device by purpose, for `none`, `ddp` or `fsdp`.

        DDP keeps a second copy of the gradients in its buckets. FSDP2 splits everything between the processes, and
        gathers the parts outside of the layers for the whole pass and two layers at a time.
        """
        split = world if kind == "fsdp" else 1
        found = {
            "parameters": self.stored * FLOAT / split,
            "gradients": self.trained * FLOAT / split * (2 if kind == "ddp" else 1),
            "optimizer": self.trained * FLOAT * MOMENTS / split,
            "average": self.stored * FLOAT / split if has_average else 0.0,
            "start model": float(self.start * FLOAT),
            "gathered": 0.0,
            # Groups of a step are computed in one pass, whose graph is kept until the backward pass.
            "activations": sum(group.activations for group in self.groups),
            "working": float(WORKING_BYTES),
        }
        if kind == "fsdp":
            layers = (self.total - self.outside) * min(1.0, 2 / self.num_layers)
            found["gathered"] = 2.0 * FLOAT * (self.outside + layers)  # weights and gradients
        return found


class SizesFile(Section):
    """A file of `configs/model`."""

    model: dict[str, Any]
    processor: dict[str, Any] = Field(default_factory=dict)
    tokenizer: TokenizerConfig = TokenizerConfig()


def with_sizes(config: RunConfig, path: Path) -> RunConfig:
    """Return a run that starts from scratch with the sizes in a file, in place of an `init` that is not here.

    The vocabulary is BART's unless the file says how many words there are. Encoders that stages add are left out.
    """
    sizes = load_config(path, [], SizesFile)
    joining = {name for stage in config.stages for name in stage.add}
    tokenizer = sizes.tokenizer
    if "num_words" not in tokenizer.model_fields_set:
        tokenizer = tokenizer.model_copy(update={"bpe": "BART"})
    changes = {
        "init": None,
        "model": {name: value for name, value in (sizes.model | config.model).items() if name not in joining},
        "processor": sizes.processor | config.processor,
        "tokenizer": tokenizer,
    }
    return config.model_copy(update=changes)


def estimate(config: RunConfig, world: int = 1) -> list[StagePlan]:
    """Return what each stage needs.

    Args:
        config: Of the run; its data are only counted, where `epochs` asks for it.
        world: Processes that share the rows; the activations are those of one of them.

    Raises:
        UserError: If the model cannot be built, or the rows cannot be cut into `world` x `accumulation` parts.
    """
    try:
        steps = [stage.steps or None for stage in with_steps(config).stages]
    except UserError:  # the rows are elsewhere
        steps = [stage.steps or None for stage in config.stages]
    stages = zip(config.stages, sketch(config), steps, strict=True)
    return [plan_stage(config, stage, model, number, world) for stage, model, number in stages]


def plan_stage(config: RunConfig, stage: StageConfig, shape: Sketch, steps: int | None, world: int) -> StagePlan:
    """Build one stage's model on the meta device and measure its groups."""
    model = shape.build().train()
    freeze(model, stage)
    if config.checkpoint_activations:
        model.activation_checkpointing_enable({"use_reentrant": False})
    rows = RowSlice(0, world, config.accumulation)
    is_short = config.precision != "fp32"
    passes = passes_of(stage.objective)
    groups = tuple(measure_group(model, group, shape, rows, is_short, passes) for group in stage.groups)
    layers = [*model.encoder.layers, *model.decoder.layers]
    parameters = parts(model)
    stored = sum(parameters.values()) + sum(b.numel() for b in model.buffers())
    return StagePlan(
        name=stage.name,
        steps=steps,
        parameters=parameters,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        outside=sum(parameters.values()) - sum(p.numel() for layer in layers for p in layer.parameters()),
        num_layers=len(layers),
        stored=stored,
        start=stored if passes.has_start else 0,
        groups=groups,
    )


def parts(model: nn.Module) -> dict[str, int]:
    """Count the parameters of each part of the model."""
    counts: Counter[str] = Counter()
    names = {"embed_tokens": "token embedding", "layers": "Transformer layers"}
    for name, parameter in model.named_parameters():
        part = name.split(".")[1]
        media = next((m for m in ("image", "video", "audio") if part == f"embed_{m}s"), None)
        counts[names.get(part, f"{media} encoder" if media else "projections, positions, norms")] += parameter.numel()
    return dict(counts)


def measure_group(
    model: UnivalForConditionalGeneration,
    group: GroupConfig,
    shape: Sketch,
    rows: RowSlice,
    is_short: bool,
    passes: Passes,
) -> GroupPlan:
    """Run one medium and one example of each task as the objective does, and add up.

    Tasks about one source share its media, as in training.
    """
    media_sizes = shape.media | {
        name: size for name in ("image_px", "video_px", "num_frames") if (size := getattr(group, name)) is not None
    }
    tasks = [get_task(entry.task, entry.task_args) for entry in group.tasks]
    modality = tasks[0].modality
    per_row = examples_per_row(group)
    medium, encoded = measure_medium(model, modality, media_sizes)
    media = media_per_row(group) if modality != "text" else 0.0
    flops, kept, length = medium.flops * media, medium.kept * media * (SHORT_MEDIA if is_short else 1), 0.0
    flops += passes.has_start * FORWARD * flops
    logits, texts = 0.0, dict[tuple[int, int, bool], Measured]()
    for entry, task, number in zip(group.tasks, tasks, per_row, strict=True):
        prompt, target = LENGTHS.get(entry.task, OTHER_LENGTH)
        if task.writes_codes:
            target = (model.config.code_image_size // 8) ** 2 + 1
        key = prompt, target, task.writes_codes
        if key not in texts:
            texts[key] = measure_passes(model, encoded, *key, passes)
        flops += texts[key].flops * number
        kept += texts[key].kept * number * (SHORT_TEXT if is_short else 1)
        written = passes.samples * (target if passes.length is None else passes.length)
        logits += number * passes.repeats * written * (passes.columns or model.config.vocab_size) * FLOAT
        num_media_tokens = 0 if encoded is None else encoded.tokens.shape[1]
        length += number * (num_media_tokens + prompt + written)
    size = rows.rows_per_pass(group.rows)
    kept = kept * size + min(logits * size, MAX_LOGITS_BYTES) * LOGITS_COPIES
    examples, media, tokens, flops = (number * group.rows for number in (sum(per_row), media, length, flops))
    return GroupPlan(modality, examples, media, tokens, flops, size * rows.passes, kept)


def examples_per_row(group: GroupConfig) -> list[float]:
    """Return how many examples of each task a row of the group yields on average."""
    if group.mixing == "balanced":
        return [entry.share / entry.every for entry in group.tasks]
    sizes = [entry.size or 1 for entry in group.tasks]  # rows that nobody counted: equal ones
    return [size / sum(sizes) for size in sizes]


def media_per_row(group: GroupConfig) -> float:
    """Return how many media a row of the group shows on average."""
    if group.mixing == "proportional":
        return 1.0
    if group.aligned:
        return max(1 / entry.every for entry in group.tasks)
    seen: dict[str, float] = {}
    for entry in group.tasks:
        key = str(entry.source.model_dump(exclude={"content"}))
        seen[key] = max(seen.get(key, 0.0), 1 / entry.every)
    return sum(seen.values())


@dataclass(frozen=True, slots=True)
class Measured:
    """FLOPs of forward and backward; bytes kept between them, float32."""

    flops: float
    kept: float


def measure_medium(
    model: UnivalForConditionalGeneration, modality: Modality, sizes: Mapping[str, Any]
) -> tuple[Measured, MediaTokens | None]:
    """Encode one medium forward and backward; return the cost and what the Transformer reads."""
    shapes = {
        "image": ("pixel_values", (3, sizes["image_px"], sizes["image_px"])),
        "video": ("pixel_values_videos", (3, sizes["num_frames"], sizes["video_px"], sizes["video_px"])),
        "audio": ("input_values", (int(sizes["sample_rate"] * sizes["audio_seconds"]),)),
    }
    if modality == "text":
        return Measured(0.0, 0.0), None
    name, size = shapes[modality]
    inputs = {name: torch.empty(1, *size, device="meta")}
    found: list[Any] = []

    def forward() -> torch.Tensor:
        found.append(model.encoder.encode_media(**inputs))
        return found[0].tokens

    # torch counts the backward pass of grouped convolutions as if they had one group; in truth it is twice the forward.
    measured = measure(model, forward, limit=2.0)
    media = MediaTokens(*(tensor.detach() for tensor in found[0]))
    media.tokens.requires_grad_(found[0].tokens.requires_grad)
    return measured, media


def measure_passes(
    model: UnivalForConditionalGeneration,
    media: MediaTokens | None,
    prompt: int,
    target: int,
    writes_codes: bool,
    passes: Passes,
) -> Measured:
    """Return what all passes over one example take."""
    length = target if passes.length is None else passes.length
    found = measure_text(model, media, prompt, length, writes_codes, passes.samples)
    flops, kept = found.flops * (1 + FORWARD * passes.forward), found.kept
    if passes.supervised:
        reference = measure_text(model, media, prompt, target, writes_codes)
        flops, kept = flops + reference.flops, kept + reference.kept
    return Measured(flops * passes.repeats, kept * passes.repeats)


def measure_text(
    model: UnivalForConditionalGeneration,
    media: MediaTokens | None,
    prompt: int,
    target: int,
    writes_codes: bool = False,
    samples: int = 1,
) -> Measured:
    """Run a prompt and targets of it through the Transformer, forward and backward, given its encoded medium."""
    ids = torch.zeros(1, prompt, dtype=torch.long, device="meta")
    prefix = torch.zeros(samples, target, dtype=torch.long, device="meta")

    def forward() -> torch.Tensor:
        encoded = model.encoder(ids, media_tokens=media)
        return model.decoder.output_projection(model.decoder(prefix, encoded, writes_codes=writes_codes))

    return measure(model, forward)


def measure(model: nn.Module, forward: Callable[[], torch.Tensor], limit: float = math.inf) -> Measured:
    """Count what a computation and its backward pass do, and what is kept in between besides the parameters.

    The backward pass counts for at most `limit` forward ones.
    """
    own = {id(parameter) for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holding a storage keeps its identity from being given away again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in own:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = forward()
        there = counter.get_total_flops()
        if result.requires_grad:
            result.sum().backward()
    model.zero_grad(set_to_none=True)
    back = min(counter.get_total_flops() - there, limit * there)
    own_storages = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    sizes = [storage.nbytes() for key, storage in kept.items() if key not in own_storages]
    return Measured(float(there + back), float(sum(sizes)))
