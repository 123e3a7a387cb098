"""Every option of a run, each documented where it is defined; YAML files under `configs/` are `RunConfig`s."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

EncoderName = Literal["image_encoder", "video_encoder", "audio_encoder"]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(Section):
    """Where rows come from: the embedded world or a manifest."""

    world: Literal["train", "validation", "test"] | None = None
    """Split of the embedded world."""
    styles: list[str] | None = None
    """Art styles of the world's pictures; by default the two training styles."""
    content: str | None = None
    """What world rows ask about; by default the task's own (matching and entailment share a task)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the world's generator (`max_objects`, `seed`, ...)."""
    manifest: str | None = None
    """A JSON-lines file; media columns are paths relative to it."""
    limit: int | None = Field(default=None, gt=0)
    """Use only this many rows."""

    @model_validator(mode="after")
    def _one_kind(self) -> "SourceConfig":
        if (self.world is None) == (self.manifest is None):
            raise ValueError("give exactly one of `world` and `manifest`")
        return self


class TaskEntry(Section):
    """One task in a mixture."""

    task: str
    """File name in `unival/tasks`."""
    task_args: dict[str, Any] = Field(default_factory=dict)
    """Fields of the task."""
    share: int = Field(default=1, gt=0)
    """Examples per row of the group."""
    every: int = Field(default=1, gt=0)
    """Take part only in every n-th row of the group (the paper interleaves CC12M with n = 8)."""
    source: SourceConfig
    """Rows."""


class GroupConfig(Section):
    """Examples of one modality that form one mini-batch; groups of a step have equal weight in the loss."""

    rows: int = Field(gt=0)
    """Rows per step; each yields `share` examples of every task."""
    image_px: int | None = Field(default=None, ge=16)
    """Side of the pictures in this group, when it differs from the processor's (the paper raises it at the end)."""
    aligned: bool = True
    """All tasks look at the same rows, so that one encoded medium serves all of them."""
    tasks: list[TaskEntry] = Field(min_length=1)
    """The fixed mixture (task balancing)."""


class ObjectiveConfig(Section):
    """What is minimised: a file in `unival/objectives` and its arguments."""

    name: str = "cross_entropy"
    args: dict[str, Any] = Field(default_factory=dict)


class OptimConfig(Section):
    """AdamW with decoupled decay, global norm clipping and a schedule over the steps of a stage."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    """Applied to every parameter, as in the original."""
    schedule: Literal["polynomial", "cosine", "constant"] = "polynomial"
    """After the warm-up: linear decay to zero, cosine to zero, or constant."""
    warmup_ratio: float = Field(default=0.02, ge=0, lt=1)
    """Share of the stage's steps with a linear warm-up."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Warm-up in updates, when it must not depend on the length of the stage; replaces `warmup_ratio`."""
    lr_scale: dict[str, float] = Field(default_factory=dict)
    """Parameters whose name starts with a key learn at this multiple of the rate: trained encoders are lost at the rate
    of a new Transformer. The first key that matches counts, and each must match."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Global L2 norm of gradients."""


class StageConfig(Section):
    """A part of the curriculum with its own mixture, optimiser and schedule."""

    name: str
    steps: int = Field(gt=0)
    """Optimiser updates."""
    groups: list[GroupConfig] = Field(min_length=1)
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    add: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Encoders that join the model at this stage: `{"video_encoder": {...}}`."""
    freeze: list[str] = Field(default_factory=list)
    """Parameters whose name starts with one of these are not trained; `*` stands for anything, each must match one."""
    train_only: list[str] = Field(default_factory=list)
    """Only parameters whose name starts with one of these are trained: `[encoder.image_proj]`, `["*.adapter."]`."""
    freeze_batchnorm: bool = False
    """Keep running statistics and use them in training."""


class EvaluationConfig(Section):
    """One evaluation: a task on a split."""

    name: str
    task: str
    task_args: dict[str, Any] = Field(default_factory=dict)
    source: SourceConfig
    batch_size: int = Field(default=64, gt=0)
    num_beams: int = Field(default=1, gt=0)
    search: dict[str, Any] = Field(default_factory=dict)
    """Further options of the search: fields of `unival.generate.SearchOptions`, such as `{no_repeat_ngram_size: 3}`."""


class TokenizerConfig(Section):
    """How to make the tokenizer of a model that starts from scratch."""

    path: str | None = None
    """Take the tokenizer of this model folder or built-in model; the other fields are then ignored."""
    bpe: str | None = None
    """Take the words of BART from this folder (`load_bpe_tokenizer` lists its files); `num_words` is then ignored."""
    num_words: int = Field(default=1536, ge=260)
    """Upper bound of the BPE vocabulary."""
    num_codes: int = Field(default=64, ge=0)
    num_bins: int = Field(default=100, ge=2)


class RunConfig(Section):
    """A run: what to start from, what to learn, how to check it."""

    out: str
    """Run folder."""
    init: str | None = None
    """A checkpoint folder, or `unival-tiny` for the model inside the package; None starts from scratch."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Fields of `UnivalConfig`: all of them from scratch, or overrides (dropout, drop_path) of `init`."""
    processor: dict[str, Any] = Field(default_factory=dict)
    """Fields of `UnivalProcessor`, when starting from scratch."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    encoder_weights: dict[EncoderName, str] = Field(default_factory=dict)
    """Files that encoders start from when they join the model (the paper: ImageNet, Kinetics and AudioSet weights)."""
    bart_weights: str | None = None
    """A BART of the same size that the Transformer starts from (the paper: BART-base), when starting from scratch."""
    stages: list[StageConfig] = Field(min_length=1)
    """The curriculum, in order."""
    evaluations: list[EvaluationConfig] = Field(default_factory=list)
    """Run after training; results go to `evaluation.json`."""
    seed: int = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 autocast where the processor has bf16 matrix units, else fp32."""
    threads: int | None = None
    """Intra-op threads; by default all cores."""
    workers: int = Field(default=1, ge=0)
    """Processes that prepare batches."""
    log_every: int = Field(default=20, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """How many checkpoints stay on disk."""


class EvaluationSuite(Section):
    """A file that only evaluates."""

    evaluations: list[EvaluationConfig] = Field(min_length=1)
