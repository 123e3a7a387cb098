"""The model that a run begins with, and the encoders that join it later."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from unival.checkpoint import load_bart, load_encoder, load_model, quiet_transformers, resolve_model_dir
from unival.data.mixture import Stream
from unival.errors import UserError, did_you_mean
from unival.model.audio import PannCNN
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.model.tokenizer import load_bpe_tokenizer, train_tokenizer
from unival.model.video import ResNeXt3D
from unival.schema import EncoderName, RunConfig, StageConfig

NUM_TOKENIZER_ROWS = 500


def start(config: RunConfig) -> tuple[UnivalForConditionalGeneration, UnivalProcessor]:
    """Load the initial model, or make one from scratch with its own tokenizer."""
    refuse_unknown("processor", config.processor, list(inspect.signature(UnivalProcessor).parameters)[2:])
    if config.init is not None:
        model, processor = load_model(config.init)
        if config.model:
            model = rebuild(model, config.model)
        for name, value in config.processor.items():
            setattr(processor, name, value)
        return model, processor
    check_options(config.model, UnivalConfig().to_dict().keys() - {"vocab_size", "num_codes", "num_bins"})
    options = config.tokenizer
    if options.path is not None:
        old = UnivalProcessor.from_pretrained(resolve_model_dir(options.path), local_files_only=True)
        tokenizer, num_bins = old.tokenizer, old.num_bins
        num_codes = sum(token.startswith("<code_") for token in tokenizer.get_vocab())
    else:
        num_codes, num_bins = options.num_codes, options.num_bins
        if options.bpe is not None:
            tokenizer = load_bpe_tokenizer(options.bpe, num_codes, num_bins)
        else:
            tokenizer = train_tokenizer(corpus(config), options.num_words, num_codes, num_bins)
    processor = UnivalProcessor(tokenizer, num_bins=num_bins, **config.processor)
    sizes = {"vocab_size": len(tokenizer), "num_codes": num_codes, "num_bins": num_bins}
    model = UnivalForConditionalGeneration(UnivalConfig(**sizes, **config.model))
    processor.max_tokens = model.config.max_text_positions
    if config.bart_weights is not None:
        load_bart(model, config.bart_weights)
    for name, path in config.encoder_weights.items():
        if config.model.get(name) is not None:  # the others join later
            load_encoder(model, name, path)
    return model, processor


def corpus(config: RunConfig) -> list[str]:
    """Return the prompts and targets of the first rows of every task, to learn a vocabulary from."""
    entries = [entry for stage in config.stages for group in stage.groups for entry in group.tasks]
    texts = []
    for stream in (Stream(entry, config.seed) for entry in entries):
        examples = (stream.example(i, 0) for i in range(min(NUM_TOKENIZER_ROWS, stream.num_media)))
        texts += [text for example in examples for text in (example.prompt, example.target)]
        texts += getattr(stream.source, "vocabulary", [])
    return texts


def add_encoders(
    model: UnivalForConditionalGeneration, stage: StageConfig, weights: Mapping[EncoderName, str]
) -> UnivalForConditionalGeneration:
    """Return a model with the encoders that join at a stage, from `weights` where given; all else is kept."""
    for name in stage.add:
        if name not in ("image_encoder", "video_encoder", "audio_encoder"):
            raise UserError(f"add: {name!r} is not an encoder", fix="image_encoder, video_encoder or audio_encoder")
    if stage.add:
        model = rebuild(model, stage.add)
    for name, path in weights.items():
        if name in stage.add:
            load_encoder(model, name, path)
    return model


def rebuild(model: UnivalForConditionalGeneration, changes: dict[str, Any]) -> UnivalForConditionalGeneration:
    """Return a model with changed configuration fields and the same weights; only new encoders start fresh.

    Raises:
        UserError: If the changes touch the shape of an existing weight.
    """
    settings = model.config.to_dict()
    check_options(changes, settings)
    with quiet_transformers():
        new = UnivalForConditionalGeneration(UnivalConfig.from_dict(settings | changes))
    state = model.state_dict()
    check_kept(state, new.state_dict())
    new.load_state_dict(state, strict=False)
    return new


def check_kept(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Refuse a change of the model after which a weight has another shape, or no place."""
    changed = [name for name, tensor in old.items() if name not in new or new[name].shape != tensor.shape]
    if changed:
        what = f"these model options change the shape of {len(changed)} weights"
        raise UserError(what, ", ".join(changed[:5]), "leave these sizes as they are, or start from scratch")


def check_options(options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse options that a model or its encoders do not have; `transformers` would keep them without a word.

    Raises:
        UserError: If one is unknown.
    """
    ours = set(known) - PreTrainedConfig().to_dict().keys()  # those of every model of transformers are not suggested
    refuse_unknown("model", [name for name in options if name not in set(known)], ours)
    for name, encoder in (("video_encoder", ResNeXt3D), ("audio_encoder", PannCNN)):
        refuse_unknown(name, options.get(name) or {}, inspect.signature(encoder).parameters)


def refuse_unknown(what: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise a `UserError` for the first option that is not known."""
    known = list(known)
    for name in options:
        if name not in known:
            raise UserError(f"unknown {what} option {name!r}", fix=did_you_mean(name, known))
