"""Every option of a run, each documented where it is defined; YAML files under `configs/` are `RunConfig`s."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from unival.sections import Rooted, Section

EncoderName = Literal["image_encoder", "video_encoder", "audio_encoder"]


def _part_of_a_file_name(name: str) -> str:
    if not name or any(character in "/\\" or not character.isprintable() for character in name):
        raise ValueError("a name becomes part of file names: no slash, no control character, not empty")
    return name


Share = Annotated[float, Field(ge=0, lt=1)]
FileName = Annotated[str, AfterValidator(_part_of_a_file_name)]


class SourceConfig(Section):
    """Where rows come from: the embedded world, or a data set in one of four forms (`docs/data.md`)."""

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
    tsv: str | None = None
    """A tab-separated file of the original."""
    webdataset: str | list[str] | None = None
    """Tar archives: a path, a pattern such as `train-{000..099}.tar`, or several."""
    huggingface: str | None = None
    """Name or path of a Hugging Face data set that is already on this machine."""
    split: str | None = None
    """Split of the Hugging Face data set."""
    columns: str | list[str] | dict[str, int | str] | None = None
    """Which column holds which field: of a TSV file a layout's name, field names in order or column numbers; of
    archives and Hugging Face data sets the columns' names by field. A manifest has its fields by name."""
    media_root: str | None = None
    """Folder of relative media paths, by default that of the manifest or TSV file."""
    limit: int | None = Field(default=None, gt=0)
    """Use only this many rows."""

    @model_validator(mode="after")
    def _one_kind(self) -> "SourceConfig":
        kinds = ("world", "manifest", "tsv", "webdataset", "huggingface")
        given = [f"{kind}: {value}" for kind in kinds if (value := getattr(self, kind)) is not None]
        if len(given) != 1:
            what = "give exactly one of `world`, `manifest`, `tsv`, `webdataset` and `huggingface`"
            raise ValueError(f"{what}; it has {' and '.join(given) or 'none'}")
        if self.tsv is not None and self.columns is None:
            raise ValueError("`tsv` needs `columns`, such as `caption` for a caption file of the original")
        for name, takers in (
            ("columns", ("tsv", "webdataset", "huggingface")),
            ("split", ("huggingface",)),
            ("media_root", ("manifest", "tsv")),
            ("styles", ("world",)),
            ("content", ("world",)),
            ("options", ("world",)),
        ):
            if getattr(self, name) and not any(getattr(self, kind) is not None for kind in takers):
                raise ValueError(f"`{name}` would not be used: it belongs to {' or '.join(takers)}, not {given[0]}")
        return self


class TaskEntry(Section):
    """One task in a mixture."""

    task: str
    """File name in `unival/tasks`, or a Python file of your own."""
    task_args: dict[str, Any] = Field(default_factory=dict)
    """Fields of the task."""
    share: int = Field(default=1, gt=0)
    """Examples per row of the group."""
    every: int = Field(default=1, gt=0)
    """Take part only in every n-th row of the group (the paper interleaves CC12M with n = 8)."""
    offset: int = Field(default=0, ge=0)
    """First of these rows; tasks with `every: 3` and offsets 0, 1, 2 take turns."""
    size: int | None = Field(default=None, gt=0)
    """Rows that the source counts for when mixing is `proportional`; by default those it has."""
    augment: Literal["pretrain", "finetune"] | None = None
    """Change media at random, as the original's pretraining or fine-tuning does (`unival.data.augment`)."""
    source: SourceConfig
    """Rows."""


class GroupConfig(Section):
    """Examples of one modality that form one mini-batch; the losses of a step's groups are added."""

    rows: int = Field(gt=0)
    """Rows per update, over all processes and accumulated passes; each yields `share` examples of every task."""
    image_px: int | None = Field(default=None, ge=16)
    """Side of the pictures in this group, when it differs from the processor's (the paper raises it at the end)."""
    video_px: int | None = Field(default=None, ge=16)
    """Side of the frames, when it differs from the processor's."""
    num_frames: int | None = Field(default=None, gt=0)
    """Frames of a clip, when they differ from the processor's."""
    buckets: list[Annotated[int, Field(ge=16)]] | None = Field(default=None, min_length=1)
    """Give every batch the smallest of these sides that holds its pictures (rows need `width` and `height`), or the
    largest of these numbers of frames that its clips have (rows need `frames`), and put alike rows together."""
    aligned: bool = True
    """All tasks look at the same rows, so that one encoded medium serves all of them. Otherwise only those of one and
    the same source do."""
    mixing: Literal["balanced", "proportional"] = "balanced"
    """`balanced`: every row yields the fixed mixture (task balancing). `proportional`: every row is one example, drawn
    without replacement from all sources put together (the paper's ablation)."""
    tasks: list[TaskEntry] = Field(min_length=1)
    """The mixture."""

    @model_validator(mode="after")
    def _no_shares_of_a_pool(self) -> "GroupConfig":
        if self.mixing == "proportional" and any(entry.share != 1 or entry.every != 1 for entry in self.tasks):
            raise ValueError("no `share` and no `every` with `mixing: proportional`, where sizes decide")
        if any(entry.offset >= entry.every for entry in self.tasks):
            raise ValueError("the `offset` of a task must be below its `every`")
        if self.buckets and (self.mixing != "balanced" or not self.aligned):
            raise ValueError("`buckets` need `mixing: balanced` and `aligned: true`")
        if self.buckets and any(entry.every != 1 or entry.augment for entry in self.tasks):
            raise ValueError("no `every` and no `augment` with `buckets`")
        if self.mixing == "balanced" and any(entry.size is not None for entry in self.tasks):
            raise ValueError("no `size` with `mixing: balanced`, where `share` and `every` decide")
        return self


class ObjectiveConfig(Section):
    """What is minimised: a file in `unival/objectives` and its arguments."""

    name: str = "cross_entropy"
    args: dict[str, Any] = Field(default_factory=dict)


class OptimConfig(Section):
    """AdamW with decoupled decay, global norm clipping and a schedule over the steps of a stage."""

    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """Applied to every parameter, as in the original."""
    schedule: Literal["polynomial", "cosine", "constant"] = "polynomial"
    """After the warm-up: linear decay to zero, cosine to zero, or constant."""
    warmup_ratio: float = Field(default=0.02, ge=0, lt=1)
    """Share of the stage's steps with a linear warm-up."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Warm-up in updates, when it must not depend on the length of the stage; replaces `warmup_ratio`."""
    schedule_steps: int | None = Field(default=None, gt=0)
    """Updates that the schedule is planned for, when the stage stops before its end (the paper plans 50 epochs)."""
    lr_scale: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Parameters whose name starts with a key learn at this multiple of the rate: trained encoders are lost at the rate
    of a new Transformer. The first key that matches counts, and each must match."""
    muon: list[str] = Field(default_factory=list)
    """Matrices and kernels whose name starts with one of these take orthogonalised momentum at the same rate (Muon)."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Global L2 norm of the gradients of the sum of the groups' losses; with k groups that is k times a mean's."""
    loss_scale: float = Field(default=128.0, gt=0, allow_inf_nan=False)
    """With fp16: what losses are multiplied with at first (specification 5)."""
    loss_scale_window: int = Field(default=128, gt=0)
    """With fp16: the scale doubles after so many finite updates in a row. An overflow halves it, without update."""


class StageConfig(Section):
    """A part of the curriculum with its own mixture, optimiser and schedule."""

    name: FileName
    steps: int = Field(default=0, ge=0)
    """Optimiser updates; 0 where `epochs` says how long."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the first task's rows, instead of `steps`; turned into steps once the rows are counted."""
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
    validation: "ValidationConfig | None" = None
    """Evaluate on the way."""

    @model_validator(mode="after")
    def _one_length(self) -> "StageConfig":
        if (self.steps > 0) == (self.epochs is not None):
            given = "neither" if self.epochs is None else f"steps: {self.steps} and epochs: {self.epochs:g}"
            raise ValueError(f"give exactly one of `steps` and `epochs`; stage {self.name!r} has {given}")
        return self


class RerankConfig(Section):
    """Which of the search's hypotheses is the prediction: the one with the highest reward."""

    reward: str
    """A reward (`docs/objectives.md`), such as `clip_score` for pictures as codes."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Its arguments."""


class EvaluationConfig(Section):
    """One evaluation: a task on a split."""

    name: FileName
    task: str
    task_args: dict[str, Any] = Field(default_factory=dict)
    source: SourceConfig
    batch_size: int = Field(default=64, gt=0)
    workers: int = Field(default=1, ge=0)
    """Processes that decode media; with 0 this one does, and a decoder that hangs cannot be killed."""
    max_bad_rows: int = Field(default=0, ge=0)
    """So many rows may have a medium that cannot be decoded. They are named, predicted as an empty text and scored."""
    num_beams: int = Field(default=1, gt=0)
    search: dict[str, Any] = Field(default_factory=dict)
    """Further options of the search: fields of `unival.generate.SearchOptions`, such as `{no_repeat_ngram_size: 3}`."""
    rerank: RerankConfig | None = None
    """Choose among all beams, or samples, by a reward instead of the search's own score."""
    processor: dict[str, Any] = Field(default_factory=dict)
    """Fields of `UnivalProcessor` that replace the model's, such as `{image_px: 512}` or `{num_frames: 16}`."""
    submission: str | None = None
    """Also write `submission-<name>` in the format of a benchmark: one of `unival.evaluation.submission.KINDS`."""


class ValidationConfig(Section):
    """Evaluations during a stage: what is watched, what is kept, when to stop."""

    every: list[Annotated[int, Field(gt=0)]] = Field(default_factory=list)
    """Steps between validations, one number or several; the last step of the stage is always validated."""
    every_epochs: float | None = Field(default=None, gt=0)
    """Passes over the first task's rows between validations, besides `every`; turned into steps as `epochs` is."""
    evaluations: list[EvaluationConfig] = Field(min_length=1)
    monitor: str | None = None
    """What decides, as `EVALUATION/METRIC`: `vqa/accuracy`."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of it is better."""
    keep_best: int = Field(default=1, ge=1)
    """How many models stay in `best/`, by the monitored metric."""
    patience: int | None = Field(default=None, gt=0)
    """End the stage after so many validations in a row without a new best."""
    restore_best: bool = False
    """End the stage with the best weights instead of the last ones."""

    @field_validator("every", mode="before")
    @classmethod
    def _one_or_several(cls, every: Any) -> Any:
        return every if isinstance(every, list) else [every]

    def is_due(self, step: int) -> bool:
        """Say whether the model is validated after so many steps of the stage."""
        return any(step % every == 0 for every in self.every)

    @model_validator(mode="after")
    def _is_sometimes_due(self) -> "ValidationConfig":
        if not self.every and self.every_epochs is None:
            raise ValueError("give `every`, `every_epochs` or both")
        return self

    @model_validator(mode="after")
    def _monitor_is_measured(self) -> "ValidationConfig":
        names = [evaluation.name for evaluation in self.evaluations]
        if self.monitor is None:
            if self.patience is not None or self.restore_best:
                raise ValueError("`patience` and `restore_best` need `monitor`")
        elif self.monitored is None:
            raise ValueError(f"`monitor` must be EVALUATION/METRIC with one of {', '.join(names)}")
        return self

    @property
    def monitored(self) -> tuple[EvaluationConfig, str] | None:
        """The evaluation and the metric that `monitor` names; a metric may have a slash."""
        name, _, metric = (self.monitor or "").partition("/")
        return next(((evaluation, metric) for evaluation in self.evaluations if evaluation.name == name), None)


class EmaConfig(Section):
    """Exponential moving average of all weights and running statistics (specification 9.2), saved beside them."""

    decay: float = Field(default=0.9999, gt=0, lt=1)
    start: int = Field(default=0, ge=0)
    """Updates before this one are not averaged: the average is a copy of the weights until then."""
    evaluate: bool = False
    """Validate and evaluate the average instead of the weights."""


class ParallelConfig(Section):
    """How the processes of `torchrun` share the work."""

    kind: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """`auto` is DDP with several processes. `fsdp` (FSDP2) splits weights, gradients and moments between processes."""
    find_unused: bool = True
    """DDP looks for parameters without gradient at every update: false is faster where every trained one has some."""
    reshard: bool = True
    """FSDP2 gathers a layer again for the backward pass; false keeps it, and is needed by objectives that sample."""


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


class RunConfig(Rooted):
    """A run: what to start from, what to learn, how to check it."""

    out: str = Field(min_length=1)
    """Run folder."""
    init: str | None = None
    """A checkpoint folder, or `unival-tiny` for the model inside the package; None starts from scratch."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Fields of `UnivalConfig`: all of them from scratch, or overrides (dropout, drop_path) of `init`."""
    processor: dict[str, Any] = Field(default_factory=dict)
    """Fields of `UnivalProcessor`: from scratch, or overrides (media sizes) of `init`."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    encoder_weights: dict[EncoderName, str] = Field(default_factory=dict)
    """Files that encoders start from when they join the model (the paper: ImageNet, Kinetics and AudioSet weights)."""
    bart_weights: str | None = None
    """A BART of the same size that the Transformer starts from (the paper: BART-base), when starting from scratch."""
    stages: list[StageConfig] = Field(min_length=1)
    """The curriculum, in order."""
    evaluations: list[EvaluationConfig] = Field(default_factory=list)
    """Run after training; results go to `evaluation.json`."""
    seed: int = Field(default=1, ge=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` is bf16 autocast where the device has bf16 matrix units, else fp32; fp16 scales the loss."""
    ema: EmaConfig | None = None
    """Average the weights."""
    accumulation: int = Field(default=1, gt=0)
    """Parts that the rows of a step are computed in, one after the other: less memory, the same update."""
    parallel: ParallelConfig = ParallelConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is a GPU when there is one."""
    compile: bool = False
    """Compile the Transformer layers with `torch.compile`."""
    checkpoint_activations: bool = False
    """Compute the inside of layers again in the backward pass: less memory, a third more time."""
    threads: int | None = Field(default=None, gt=0)
    """Intra-op threads; by default all cores."""
    workers: int = Field(default=1, ge=0)
    """Processes that prepare batches."""
    log_every: int = Field(default=20, gt=0)
    tensorboard: bool = False
    """Write TensorBoard's files to `tensorboard/` beside the JSON lines; needs the extra `logging`."""
    show_every: int | None = Field(default=None, gt=0)
    """Show what the model writes for some of its training examples every so many steps; kept in `samples.jsonl`."""
    show: int = Field(default=2, gt=0)
    """How many examples of each group are shown."""
    checkpoint_every: int = Field(default=500, gt=0)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """How many checkpoints stay on disk."""
    resume: str = "auto"
    """`auto` goes on from the newest valid checkpoint of the run folder; a path starts a new run from that one."""

    @model_validator(mode="after")
    def _stages_have_names_of_their_own(self) -> "RunConfig":
        names = [stage.name for stage in self.stages]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two stages are called {twice!r}: logs and best models go by the name")
        return self


# Fields of `RunConfig` that say how a run is carried out, not what it learns: they may change when it is continued.
EXECUTION = frozenset(
    {
        *("out", "data", "accumulation", "parallel", "device", "compile", "checkpoint_activations", "threads"),
        *("workers", "log_every", "tensorboard", "show_every", "show", "checkpoint_every", "keep_checkpoints"),
        *("resume", "evaluations"),
    }
)


class EvaluationSuite(Rooted):
    """A file that only evaluates."""

    evaluations: list[EvaluationConfig] = Field(min_length=1)
