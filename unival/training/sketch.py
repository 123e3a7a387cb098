"""The models of a run as shapes only: built without memory, from a configuration alone (no data, no weights)."""

import inspect
import json
from dataclasses import dataclass
from typing import Any

import torch

from unival.checkpoint import quiet_transformers, read_config, resolve_model_dir
from unival.config_problem import at
from unival.errors import UserError, did_you_mean
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor, check_media
from unival.schema import RunConfig
from unival.training.building import check_options, refuse_unknown

BART_WORDS = 50_265  # of the original's dictionary, special tokens included (specification 3.1)
ENCODERS = ("image_encoder", "video_encoder", "audio_encoder")
COUNTS = ("vocab_size", "num_codes", "num_bins")


@dataclass(frozen=True, slots=True)
class Sketch:
    """What a stage trains.

    Attributes:
        settings: Fields of `UnivalConfig`.
        media: Settings of `UnivalProcessor`: sizes of pictures, clips and sounds.
    """

    settings: dict[str, Any]
    media: dict[str, Any]

    def build(self) -> UnivalForConditionalGeneration:
        """Return the model on the meta device: names and shapes, no values.

        Raises:
            UserError: If an option has a value that no model can have.
        """
        try:
            with torch.device("meta"), quiet_transformers():
                return UnivalForConditionalGeneration(UnivalConfig.from_dict(dict(self.settings)))
        except UserError:
            raise
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:  # what torch says of wrong sizes
            what = f"no model can be built from these options: {error}"
            raise UserError(what, fix="`unival.model.configuration` says what each is") from None

    def has(self, modality: str) -> bool:
        """Say whether the model can be shown this modality."""
        return modality == "text" or self.settings.get(f"{modality}_encoder") is not None


def sketch(config: RunConfig) -> list[Sketch]:
    """Return what each stage trains, in order.

    From scratch with a tokenizer of its own, the vocabulary is as large as it may become.

    Raises:
        UserError: If `init` is no model, or an option of the model, an encoder or the processor is unknown.
    """
    with at("processor"):
        refuse_unknown("processor", config.processor, media_defaults())
        check_media(config.processor)
    settings, media = _from_init(config) if config.init is not None else _from_scratch(config)
    stages = []
    for number, stage in enumerate(config.stages):
        for name in stage.add:
            with at(f"stages.{number}.add"):
                if name not in ENCODERS:
                    raise UserError(f"add: {name!r} is not an encoder", fix=did_you_mean(name, ENCODERS))
                check_options({name: stage.add[name]}, ENCODERS)
                if settings.get(name) is not None:
                    raise UserError(f"the model has its {name} already", fix="remove it from `add`")
        settings = settings | stage.add
        stages.append(Sketch(settings, media))
    return stages


def media_defaults() -> dict[str, Any]:
    """Return the settings of a processor with their defaults."""
    arguments = list(inspect.signature(UnivalProcessor).parameters.values())[2:]  # after the tokenizer and `num_bins`
    return {argument.name: argument.default for argument in arguments}


def _from_init(config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    with at("init"):
        folder = resolve_model_dir(str(config.init))
        settings = read_config(folder).to_dict()
    with at("model"):
        check_options(config.model, settings)
    stored = folder / "processor_config.json"
    media = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    known = media_defaults()
    return settings | config.model, known | {k: v for k, v in media.items() if k in known} | config.processor


def _from_scratch(config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    with at("model"):
        check_options(config.model, UnivalConfig().to_dict().keys() - set(COUNTS))
    options = config.tokenizer
    if options.path is not None:
        with at("tokenizer.path"):
            folder = resolve_model_dir(options.path)
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        counts = {name: stored[name] for name in COUNTS}
    else:
        words = BART_WORDS if options.bpe is not None else options.num_words
        counts = {"num_codes": options.num_codes, "num_bins": options.num_bins}
        counts["vocab_size"] = words + options.num_codes + options.num_bins
    return UnivalConfig().to_dict() | counts | config.model, media_defaults() | config.processor
