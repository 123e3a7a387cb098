"""UnIVAL: media tokens and text tokens in, one discrete sequence out (arXiv 2307.16184; specification section 2).

Module and parameter names are the original's, so that released checkpoints map name for name. Shapes: B rows, N media,
L text tokens, P media tokens, S = P + L, T target tokens, D width, H heads, V vocabulary.
"""

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache, StaticCache
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from unival.model.audio import FourierBasis, LogMel
from unival.model.bias import PositionBias
from unival.model.configuration import UnivalConfig
from unival.model.decoder import UnivalDecoder
from unival.model.encoder import MEDIA_INPUTS, MediaTokens, UnivalEncoder, UnivalEncoderOutput, asked, refuse
from unival.model.layers import Attention, take_weights
from unival.model.linear import Linear
from unival.model.norm import FrozenBatchNorm
from unival.model.processing import UnivalProcessor
from unival.model.tuning import LowRankLinear, add_low_rank

__all__ = ["MEDIA_INPUTS", "MediaTokens", "UnivalEncoderOutput", "UnivalForConditionalGeneration"]

ATTENTIONS = ("self_attn", "encoder_attn")  # of a layer of the decoder


class UnivalPreTrainedModel(PreTrainedModel):
    """Weight initialisation and the marks that `transformers` needs."""

    config: UnivalConfig
    config_class = UnivalConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean, which `Trainer` then divides by the batches it accumulates
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["spectrogram_extractor", "logmel_extractor"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module: BERT style for linears and embeddings (specification 2.9), Kaiming for convolutions."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init_linear(module, std)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, 0.0, std)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.BatchNorm3d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            for name, buffer in module.named_buffers(recurse=False):  # of batch norms
                (init.ones_ if name == "running_var" else init.zeros_)(buffer)
        elif isinstance(module, Attention):
            init.ones_(module.c_attn)
        elif isinstance(module, FourierBasis | LogMel | FrozenBatchNorm | PositionBias):
            module.reset_parameters()
        elif hasattr(module, "init_non_persistent_buffers"):  # of timm: tables that are computed, not stored
            cast(Any, module).init_non_persistent_buffers()


def init_linear(module: nn.Linear, std: float) -> None:
    """Initialise a linear map, and a low-rank update beside it as nothing."""
    init.normal_(module.weight, 0.0, std)
    if module.bias is not None:
        init.zeros_(module.bias)
    if isinstance(module, LowRankLinear):
        init.normal_(module.lora_A, 0.0, module.in_features**-0.5)
        init.zeros_(module.lora_B)


class UnivalForConditionalGeneration(UnivalPreTrainedModel, GenerationMixin):
    """The whole model, with `generate` from `transformers`."""

    _tied_weights_keys = {
        "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
        "decoder.output_projection.weight": "encoder.embed_tokens.weight",
    }

    def __init__(self, config: UnivalConfig) -> None:
        super().__init__(config)
        self.encoder = UnivalEncoder(config)
        self.decoder = UnivalDecoder(config)
        if config.lora_rank:
            add_low_rank(self, config.lora_rank, config.lora_alpha)
        self.post_init()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules, but a batch norm whose weights are frozen stays as it is.

        Otherwise an adapter would be trained on a base whose running statistics move, which no adapter file holds.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the tied embedding matrix (V, D)."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the tied embedding matrix."""
        self.encoder.embed_tokens = self.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output projection, tied to the embeddings."""
        return self.decoder.output_projection

    def set_output_embeddings(self, new_embeddings: Linear) -> None:
        """Replace the output projection."""
        self.decoder.output_projection = new_embeddings

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the encoder, which takes all media inputs."""
        return self.encoder

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        media_index: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        writes_codes: bool = False,
        encoder_outputs: UnivalEncoderOutput | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> Seq2SeqLMOutput:
        """Return logits (B, T, V) of the next target token; inputs as in `UnivalEncoder` and `UnivalDecoder`.

        Args:
            input_ids: (B, L) prompt; see `UnivalEncoder.forward` for the media inputs.
            attention_mask: (B, L).
            pixel_values, pixel_values_videos, input_values, media_index: See `UnivalEncoder.forward`.
            decoder_input_ids: (B, T) target prefix, starting with `<s>`.
            decoder_attention_mask: (B, T), 0 at padding.
            writes_codes: See `UnivalDecoder.forward`.
            encoder_outputs: Reused when given, the encoder is then not run.
            past_key_values: Cache of `generate`; one for self-attention only is completed.
            labels: (B, T) target ids; padding and -100 carry no loss. `loss` is their mean cross entropy.
            use_cache: Return and fill a cache.
            output_attentions: Return the weights (B, H, T, S) of every layer, before the scales of the heads; attention
                is then computed one by one and takes more memory.
            output_hidden_states: Return what every layer was given, then the features behind the last.
            others: `return_dict=False` returns a tuple; for all else see `refuse`.
        """
        refuse(others, self.forward)
        if isinstance(encoder_outputs, tuple) and len(encoder_outputs) >= 3:  # of `return_dict=False`
            last, *_, mask, positions = encoder_outputs
            encoder_outputs = UnivalEncoderOutput(last, attention_mask=mask, position_embeddings=positions)
        keeps_weights, keeps_states = asked(self.config, output_attentions, output_hidden_states)
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("give input_ids or encoder_outputs")
            encoder_outputs = cast(
                UnivalEncoderOutput,
                self.encoder(
                    input_ids,
                    attention_mask,
                    pixel_values,
                    pixel_values_videos,
                    input_values,
                    media_index,
                    output_attentions=keeps_weights,
                    output_hidden_states=keeps_states,
                ),
            )
        if labels is not None and decoder_input_ids is None:
            decoder_input_ids = self.shift_right(labels)
        if decoder_input_ids is None:
            raise ValueError("give decoder_input_ids or labels")
        check_rows(encoder_outputs, decoder_input_ids, labels)
        if use_cache and past_key_values is None and labels is None:
            past_key_values = DynamicCache()
        if past_key_values is not None:
            past_key_values = complete_cache(past_key_values)
        states: list[Tensor] | None = [] if keeps_states else None
        features = self.decoder(
            decoder_input_ids,
            encoder_outputs,
            past_key_values,
            decoder_attention_mask,
            writes_codes,
            states,
            keeps_weights,
        )
        own, cross = (take_weights(self.decoder.layers, n) if keeps_weights else None for n in ATTENTIONS)
        logits = self.decoder.output_projection(features)
        loss = None
        if labels is not None:
            target = labels.masked_fill(labels == self.config.pad_token_id, -100)
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten())
        return Seq2SeqLMOutput(
            loss=loss,  # pyright: ignore[reportArgumentType]
            logits=logits,
            past_key_values=past_key_values,  # pyright: ignore[reportArgumentType]
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,  # pyright: ignore[reportArgumentType]
            decoder_hidden_states=tuple(states) if states is not None else None,  # pyright: ignore[reportArgumentType]
            decoder_attentions=own,  # pyright: ignore[reportArgumentType]
            cross_attentions=cross,  # pyright: ignore[reportArgumentType]
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        encoder_outputs: UnivalEncoderOutput | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat rows for beams, but not the encoder's output, which all beams of a row read; drop encoded media."""
        encoded = {*MEDIA_INPUTS.values(), "media_index", "media_tokens"}
        inputs = {name: value for name, value in inputs.items() if name not in encoded}
        expand = super()._expand_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]  # its `self`
        ids, inputs = expand(expand_size, False, input_ids, **inputs)
        return ids, inputs | {"encoder_outputs": encoder_outputs}

    def _reorder_cache(self, cache: EncoderDecoderCache, beam_index: Tensor) -> EncoderDecoderCache:
        """Follow the beams in self-attention; cross-attention has one row for all beams of a sample."""
        cache.self_attention_cache.reorder_cache(beam_index)  # pyright: ignore[reportArgumentType]
        return cache

    def shift_right(self, labels: Tensor) -> Tensor:
        """Return decoder inputs (B, T) for `labels` (B, T): `<s>` first, -100 replaced by padding."""
        start = labels.new_full((len(labels), 1), self.config.bos_token_id)
        return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == -100, self.config.pad_token_id)], dim=1)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Return `shift_right(labels)`: the name that data collators of `transformers` look for."""
        return self.shift_right(labels)


def check_rows(encoded: UnivalEncoderOutput, decoder_input_ids: Tensor, labels: Tensor | None) -> None:
    """Refuse outputs of another model's encoder, and decoder rows that belong to no encoder row.

    Several consecutive decoder rows may share an encoder row, as beams do; labels have a row each.

    Raises:
        ValueError: In these cases.
    """
    if getattr(encoded, "position_embeddings", None) is None or encoded.last_hidden_state is None:
        raise ValueError("encoder_outputs must be what this model's encoder returns, with its masks and positions")
    rows, found = len(encoded.last_hidden_state), len(decoder_input_ids if labels is None else labels)
    if found % max(rows, 1) or (found > 0) != (rows > 0) or (labels is not None and found != rows):
        kind = "decoder_input_ids" if labels is None else "labels"
        raise ValueError(f"{kind} have {found} rows for {rows} of the encoder")


def complete_cache(cache: Cache) -> EncoderDecoderCache:
    """Return a cache with both parts; one for self-attention only gets an empty one for cross-attention.

    Raises:
        ValueError: If it does not grow with the tokens, as attention biases do.
    """
    if isinstance(cache, DynamicCache):
        return EncoderDecoderCache(cache, DynamicCache())
    if not isinstance(cache, EncoderDecoderCache) or isinstance(cache.self_attention_cache, StaticCache):
        kind = type(getattr(cache, "self_attention_cache", cache)).__name__
        raise ValueError(
            f"UnIVAL cannot use a {kind} as past_key_values: leave out cache_implementation, or use dynamic"
        )
    return cache


AutoConfig.register("unival", UnivalConfig, exist_ok=True)
AutoProcessor.register(UnivalConfig, UnivalProcessor, exist_ok=True)
for auto_class in (AutoModelForSeq2SeqLM, AutoModelForImageTextToText):
    auto_class.register(UnivalConfig, UnivalForConditionalGeneration, exist_ok=True)
