"""The encoder: media encoders, embeddings and a Transformer over media tokens and text tokens (specification 2.3).

Shapes: B rows, N media, L text tokens, P media tokens, S = P + L, D width, H heads.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from unival.errors import did_you_mean
from unival.model import positions
from unival.model.audio import PannCNN
from unival.model.bias import PositionBias, mask_bias, relative_bias
from unival.model.configuration import UnivalConfig
from unival.model.image import build_image_encoder, image_features
from unival.model.layers import EncoderLayer, drop_path_rates, take_weights
from unival.model.tuning import Adapter, PrefixEncoder, TwinAdapter, all_rows
from unival.model.video import ResNeXt3D

MEDIA_INPUTS = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_values"}


# Arguments of other models of `transformers`, which this one cannot follow.
IGNORED = ("tokenizer", "assistant_tokenizer")  # which `generate` hands on when it has used them
NUM_AXES = {"image": 4, "video": 5, "audio": 2}
UNSUPPORTED = ("inputs_embeds", "decoder_inputs_embeds", "task_ids")


def refuse(others: Mapping[str, Any], forward: Callable[..., Any]) -> None:
    """Refuse arguments that `forward` does not take, unless they ask for nothing: PEFT and `generate` pass such ones.

    Raises:
        TypeError: If a name is unknown.
        ValueError: If it is one of `transformers` that has no meaning here.
    """
    for name, value in others.items():
        if value is None or value is False or name in IGNORED:
            continue
        if name in UNSUPPORTED:
            raise ValueError(f"UnIVAL does not support {name}: leave it out")
        names = [known for known in inspect.signature(forward).parameters if known != "others"]
        raise TypeError(f"unexpected argument {name!r} ({did_you_mean(name, names)})")


def asked(config: UnivalConfig, attentions: bool | None, hidden_states: bool | None) -> tuple[bool, bool]:
    """Return whether weights of attention and states between layers are wanted: as asked, else as configured."""
    given = {"output_attentions": attentions, "output_hidden_states": hidden_states}
    first, second = (bool(getattr(config, name, False)) if value is None else value for name, value in given.items())
    return first, second


@dataclass
class UnivalEncoderOutput(BaseModelOutput):
    """Encoder output.

    Attributes:
        last_hidden_state: (B, S, D), media tokens first.
        attention_mask: (B, S) bool, False at text padding.
        hidden_states: What every layer was given, then `last_hidden_state`; None unless asked for.
        attentions: Weights (B, H, S, S) of every layer; None unless asked for.
        position_embeddings: One tensor (1, S, D), normed, the same for all rows; (B, S, D) when patches are sampled.
            It sits in a tuple so that `generate` does not repeat it for every beam.
    """

    last_hidden_state: Tensor | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    attention_mask: Tensor | None = None
    position_embeddings: tuple[Tensor, ...] | None = None


def check_media(modality: str, media: Tensor) -> None:
    """Refuse media that are no floats, or that have other axes."""
    if not media.is_floating_point():
        raise ValueError(f"{MEDIA_INPUTS[modality]} is {media.dtype}: give floats in [-1, 1], as the processor does")
    if media.ndim != NUM_AXES[modality]:
        what = f"{MEDIA_INPUTS[modality]} is {tuple(media.shape)}, and needs {NUM_AXES[modality]} axes, media first"
        raise ValueError(what)


class MediaTokens(NamedTuple):
    """Encoded media of one modality: tokens (N, P, D), their position embeddings (P, D), grid ids (P,).

    When patches are sampled, each row has its own: positions (N, P, D), ids (N, P).
    """

    tokens: Tensor
    positions: Tensor
    ids: Tensor

    def rows(self, index: Tensor) -> "MediaTokens":
        """Return the media of some rows (B,)."""
        tokens = self.tokens.index_select(0, index)
        if self.ids.ndim == 1:
            return self._replace(tokens=tokens)
        return MediaTokens(tokens, self.positions.index_select(0, index), self.ids.index_select(0, index))


class UnivalEncoder(PositionBias):
    """Media encoders, embeddings and the Transformer encoder."""

    main_input_name = "input_ids"  # read by `generate`

    def __init__(self, config: UnivalConfig) -> None:
        super().__init__(config, config.encoder_layers, config.encoder_attention_heads)
        width, grid = config.d_model, config.image_bucket_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.patch_layernorm_embedding = nn.LayerNorm(width)
        self.type_embedding = nn.Embedding(2, width)
        if config.image_encoder is not None:
            self.embed_images, channels = build_image_encoder(config.image_encoder)
            self.image_proj = nn.Linear(channels, width)
        if config.video_encoder is not None:
            self.embed_videos = ResNeXt3D(**config.video_encoder)
            self.video_proj = nn.Linear(self.embed_videos.out_channels, width)
            self.embed_video_positions = nn.Embedding(grid * grid + 1, width)
        if config.audio_encoder is not None:
            self.embed_audios = PannCNN(**config.audio_encoder)
            self.audio_proj = nn.Linear(self.embed_audios.out_channels, width)
            self.embed_audio_positions = nn.Embedding(grid * grid + 1, width)
        self.pos_q_linear = nn.Linear(width, width)
        self.pos_k_linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        adapter_kind = TwinAdapter if config.adapter_per_modality else Adapter
        self.layers = nn.ModuleList(
            EncoderLayer(
                width,
                config.encoder_attention_heads,
                config.encoder_ffn_dim,
                config.attn_scale_factor,
                config.dropout,
                rate,
                adapter_kind(width, config.adapter_dim) if config.adapter_dim else None,
            )
            for rate in drop_path_rates(config.drop_path, config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(width)
        if config.encoder_prompt_length:
            self.encoder_prompt_encoder = PrefixEncoder(
                width,
                config.encoder_layers,
                config.encoder_attention_heads,
                config.encoder_prompt_length,
                config.prompt_hidden_dim,
            )

    def encode_media(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
    ) -> MediaTokens | None:
        """Run the encoder of the one modality that is given; None for text only.

        Args:
            pixel_values: Images (N, 3, H, W), normalised to [-1, 1].
            pixel_values_videos: Clips (N, 3, F, H, W), normalised likewise.
            input_values: Waveforms (N, samples) in [-1, 1].

        Raises:
            ValueError: If two modalities are given, or the model has no encoder for the one that is.
        """
        given = {"image": pixel_values, "video": pixel_values_videos, "audio": input_values}
        present = {modality: value for modality, value in given.items() if value is not None}
        if not present:
            return None
        if len(present) > 1:
            raise ValueError(f"one modality per batch, got {' and '.join(present)}")
        modality, media = present.popitem()
        if getattr(self.config, f"{modality}_encoder") is None:
            raise ValueError(f"this model has no {modality} encoder: add `{modality}_encoder` to its configuration")
        check_media(modality, media)
        grid, device = self.config.image_bucket_size, media.device
        if modality != "audio":  # sounds are cast behind their float32 spectrogram
            media = media.to(self.patch_layernorm_embedding.weight.dtype)
        if modality == "image":
            features = image_features(self.embed_images, media)
            ids = positions.grid_ids(1, features.shape[2], features.shape[3], grid, device)
            table, projection = all_rows(self.embed_image_positions), self.image_proj
        elif modality == "video":
            features = self.embed_videos(media.contiguous(memory_format=torch.channels_last_3d))
            ids = positions.grid_ids(features.shape[2], features.shape[3], features.shape[4], grid, device)
            table, projection = all_rows(self.embed_video_positions), self.video_proj
        else:
            features = self.embed_audios(media)
            ids = positions.audio_ids(features.shape[2] * features.shape[3], grid, device)
            table, projection = all_rows(self.embed_audio_positions), self.audio_proj
        position = table[ids]
        side = self.config.orig_patch_image_size // 16
        if self.config.interpolate_position and modality == "image" and len(ids) > side * side:
            position = positions.resized_grid(table, features.shape[2], features.shape[3], side, grid)
        features = features.flatten(2).transpose(1, 2)  # N P C
        if self.config.sample_patch_num is not None and self.config.sample_patch_num < len(ids):
            kept = positions.draw_tokens(len(features), len(ids), self.config.sample_patch_num)
            kept = kept.to(features.device)
            ids, position = ids[kept], position[kept]
            features = features.take_along_dim(kept[..., None], 1)
        tokens = self.patch_layernorm_embedding(projection(features) + all_rows(self.type_embedding)[1])
        return MediaTokens(tokens, self.image_pos_ln(position), ids)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        media_index: Tensor | None = None,
        media_tokens: MediaTokens | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> UnivalEncoderOutput | tuple[Any, ...]:
        """Encode text and at most one medium per row.

        Args:
            input_ids: (B, L) text ids.
            attention_mask: (B, L), 0 at padding.
            pixel_values, pixel_values_videos, input_values: Media with N rows; see `encode_media`.
            media_index: (B,) row of the media tensor that belongs to each text row; None when N = B. Several
                examples that look at one medium share its features.
            media_tokens: Result of `encode_media`, when media are already encoded.
            return_dict: False returns a tuple.
            output_attentions, output_hidden_states: Return these too; by default as the configuration says.
            others: See `refuse`.
        """
        refuse(others, self.forward)
        text = self.embed_tokens(input_ids) + all_rows(self.type_embedding)[0]
        x = self.dropout(self.layernorm_embedding(text))
        mask = input_ids.ne(self.config.pad_token_id) if attention_mask is None else attention_mask.bool()
        position = self.text_position_embeddings(input_ids.shape[1])[None]  # 1 L D
        media = media_tokens
        if media is None:
            media = self.encode_media(pixel_values, pixel_values_videos, input_values)
        if media is not None:
            media = media if media_index is None else media.rows(media_index)
            if len(media.tokens) != len(x):
                counts = f"{len(media.tokens)} media for {len(x)} texts"
                raise ValueError(f"{counts}: give as many, or media_index, the row of each text's medium")
            x = torch.cat([self.dropout(media.tokens), x], dim=1)
            media_position = media.positions if media.positions.ndim == 3 else media.positions[None]
            position = torch.cat([media_position, position.expand(len(media_position), -1, -1)], dim=1)
            mask = torch.cat([mask.new_ones(media.tokens.shape[:2]), mask], dim=1)
        bias = self.absolute_bias(position, position, self.pos_q_linear, self.pos_k_linear) + mask_bias(mask, x.dtype)
        ids = None if media is None else media.ids
        num_media = 0 if ids is None else ids.shape[-1]
        buckets = self.buckets(ids, input_ids.shape[1])
        prefixes = self.encoder_prompt_encoder() if self.config.encoder_prompt_length else [None] * len(self.layers)
        keeps_weights, keeps_states = asked(self.config, output_attentions, output_hidden_states)
        states: list[Tensor] = []
        for index, (layer, prefix) in enumerate(zip(self.layers, prefixes, strict=True)):
            if keeps_states:
                states.append(x)
            layer_bias = bias + relative_bias(self.table(index, ids), buckets)
            x = self.run_layer(layer, x, layer_bias, num_media, prefix, keeps_weights)
        last = self.layer_norm(x)
        output = UnivalEncoderOutput(
            last,
            hidden_states=(*states, last) if keeps_states else None,
            attentions=take_weights(self.layers, "self_attn") if keeps_weights else None,
            attention_mask=mask,
            position_embeddings=(position,),
        )
        return output.to_tuple() if return_dict is False else output

    def buckets(self, ids: Tensor | None, text_length: int) -> Tensor:
        """Return rows of `table` for all pairs of tokens: (S, S), or (B, S, S) when media `ids` differ between rows."""
        text = self.text_buckets(0, text_length)
        if ids is None:
            return text
        image_rows, text_rows = positions.num_image_buckets(self.config.image_bucket_size), self.num_text_buckets
        num_media = ids.shape[-1]
        size = num_media + text_length
        buckets = text.new_full((*ids.shape[:-1], size, size), image_rows + text_rows)
        buckets[..., :num_media, :num_media] = self.image_buckets(ids, ids)
        buckets[..., num_media:, num_media:] = text + image_rows
        return buckets

    def table(self, layer: int, ids: Tensor | None) -> Tensor:
        """Return the relative tables of a layer: of media, of text, and a zero for pairs of one of each."""
        text = self.text_table(layer)
        if ids is None:
            return text
        return torch.cat([self.image_table(layer), text, text.new_zeros(1, self.num_heads)])
