"""UnIVAL: media tokens and text tokens in, one discrete sequence out (arXiv 2307.16184; specification section 2).

Module and parameter names are the original's, so that released checkpoints map name for name. Shapes: B rows, N media,
L text tokens, P media tokens, S = P + L, T target tokens, D width, H heads, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from unival.model import positions
from unival.model.audio import LogMel, PannCNN
from unival.model.configuration import UnivalConfig
from unival.model.image import build_image_encoder, image_features
from unival.model.layers import Attention, DecoderLayer, EncoderLayer
from unival.model.video import ResNeXt3D

MEDIA_INPUTS = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_values"}


@dataclass
class UnivalEncoderOutput(BaseModelOutput):
    """Encoder output.

    Attributes:
        last_hidden_state: (B, S, D), media tokens first.
        attention_mask: (B, S) bool, False at text padding.
        position_embeddings: One tensor (1, S, D), normed, the same for all rows. It sits in a tuple so that `generate`
            does not repeat it for every beam.
    """

    last_hidden_state: Tensor | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    attention_mask: Tensor | None = None
    position_embeddings: tuple[Tensor, ...] | None = None


class MediaTokens(NamedTuple):
    """Encoded media of one modality: tokens (N, P, D), their position embeddings (P, D) and grid ids (P,) on the CPU."""

    tokens: Tensor
    positions: Tensor
    ids: Tensor


class PositionBias(nn.Module):
    """Base of encoder and decoder: absolute-position logits shared by all layers and relative tables per layer."""

    def __init__(self, config: UnivalConfig, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.config = config
        width, grid = config.d_model, config.image_bucket_size
        self.num_heads = num_heads
        self.bias_scale = (width // num_heads * config.attn_scale_factor) ** -0.5
        self.embed_positions = nn.Embedding(config.max_text_positions + 2, width)
        self.embed_image_positions = nn.Embedding(grid * grid + 1, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        text_rows, image_rows = 2 * config.text_bucket_size - 1, positions.num_image_buckets(grid)
        self.token_rel_pos_table_list = nn.ModuleList(
            nn.Embedding(text_rows, num_heads) for _ in range(num_layers)
        )
        self.image_rel_pos_table_list = nn.ModuleList(
            nn.Embedding(image_rows, num_heads) for _ in range(num_layers)
        )

    def text_position_embeddings(self, length: int) -> Tensor:
        """Return normed absolute text positions (length, D); rows count from 0 and include padding."""
        limit = self.config.max_text_positions
        if length > limit:
            raise ValueError(f"{length} text tokens exceed max_text_positions = {limit}: shorten the text")
        return self.pos_ln(self.embed_positions.weight[:length])

    def absolute_bias(self, query: Tensor, key: Tensor, q_linear: nn.Linear, k_linear: nn.Linear) -> Tensor:
        """Return content-free logits (1, H, T, S) of query positions (T, D) and key positions (S, D)."""
        q = q_linear(query).unflatten(-1, (self.num_heads, -1)) * self.bias_scale
        k = k_linear(key).unflatten(-1, (self.num_heads, -1))
        return torch.einsum("thk,shk->hts", q, k)[None]

    def text_bias(self, layer: int, queries: slice, length: int) -> Tensor:
        """Return the relative text bias (H, T, length) of a layer for the query rows given by a slice."""
        table = self.token_rel_pos_table_list[layer].weight
        buckets = positions.text_buckets(self.config.text_bucket_size, self.config.max_text_positions)
        return table[buckets[queries, :length].to(table.device)].permute(2, 0, 1)

    def image_bias(self, layer: int, query_ids: Tensor, key_ids: Tensor) -> Tensor:
        """Return the relative 2-D bias (H, T, S) of a layer between grid ids (T,) and (S,)."""
        table = self.image_rel_pos_table_list[layer].weight
        buckets = positions.image_buckets(self.config.image_bucket_size)[query_ids][:, key_ids]
        return table[buckets.to(table.device)].permute(2, 0, 1)


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
        self.layers = nn.ModuleList(
            EncoderLayer(
                width,
                config.encoder_attention_heads,
                config.encoder_ffn_dim,
                config.attn_scale_factor,
                config.dropout,
                rate,
            )
            for rate in linspace(config.drop_path, config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(width)

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
            raise ValueError(
                f"this model has no {modality} encoder: add `{modality}_encoder` to its configuration"
            )
        grid = self.config.image_bucket_size
        if modality == "image":
            features = image_features(self.embed_images, media)
            ids = positions.grid_ids(1, features.shape[2], features.shape[3], grid)
            table, projection = self.embed_image_positions, self.image_proj
        elif modality == "video":
            features = self.embed_videos(media.contiguous(memory_format=torch.channels_last_3d))
            ids = positions.grid_ids(features.shape[2], features.shape[3], features.shape[4], grid)
            table, projection = self.embed_video_positions, self.video_proj
        else:
            features = self.embed_audios(media)
            ids = positions.audio_ids(features.shape[2] * features.shape[3], grid)
            table, projection = self.embed_audio_positions, self.audio_proj
        tokens = projection(features.flatten(2).transpose(1, 2))  # N P D
        tokens = self.patch_layernorm_embedding(tokens + self.type_embedding.weight[1])
        return MediaTokens(tokens, self.image_pos_ln(table.weight[ids.to(table.weight.device)]), ids)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        media_index: Tensor | None = None,
        media_tokens: MediaTokens | None = None,
        **_: Any,
    ) -> UnivalEncoderOutput:
        """Encode text and at most one medium per row.

        Args:
            input_ids: (B, L) text ids.
            attention_mask: (B, L), 0 at padding.
            pixel_values, pixel_values_videos, input_values: Media with N rows; see `encode_media`.
            media_index: (B,) row of the media tensor that belongs to each text row; None when N = B. Several
                examples that look at one medium share its features.
            media_tokens: Result of `encode_media`, when media are already encoded.
        """
        text = self.embed_tokens(input_ids) + self.type_embedding.weight[0]
        x = self.dropout(self.layernorm_embedding(text))
        mask = input_ids.ne(self.config.pad_token_id) if attention_mask is None else attention_mask.bool()
        position = self.text_position_embeddings(input_ids.shape[1])
        media = media_tokens or self.encode_media(pixel_values, pixel_values_videos, input_values)
        if media is not None:
            tokens = media.tokens if media_index is None else media.tokens.index_select(0, media_index)
            x = torch.cat([self.dropout(tokens), x], dim=1)
            position = torch.cat([media.positions, position])
            mask = torch.cat([mask.new_ones(tokens.shape[:2]), mask], dim=1)
        absolute = self.absolute_bias(position, position, self.pos_q_linear, self.pos_k_linear)
        ids = None if media is None else media.ids
        key_mask = mask_bias(mask, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, self.layer_bias(index, absolute, ids, input_ids.shape[1]) + key_mask)
        return UnivalEncoderOutput(
            last_hidden_state=self.layer_norm(x), attention_mask=mask, position_embeddings=(position[None],)
        )

    def layer_bias(self, layer: int, absolute: Tensor, ids: Tensor | None, text_length: int) -> Tensor:
        """Add the relative tables of a layer to the absolute bias (1, H, S, S): media block first, text block last."""
        text = self.text_bias(layer, slice(0, text_length), text_length)
        if ids is None:
            return absolute + text
        image = self.image_bias(layer, ids, ids)
        pad_image = nn.functional.pad(image, (0, text_length, 0, text_length))
        pad_text = nn.functional.pad(text, (len(ids), 0, len(ids), 0))
        return absolute + pad_image + pad_text


class UnivalDecoder(PositionBias):
    """The Transformer decoder; logits come from the tied embedding matrix."""

    def __init__(self, config: UnivalConfig) -> None:
        super().__init__(config, config.decoder_layers, config.decoder_attention_heads)
        width = config.d_model
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.code_layernorm_embedding = nn.LayerNorm(width)
        self.self_pos_q_linear = nn.Linear(width, width)
        self.self_pos_k_linear = nn.Linear(width, width)
        self.cross_pos_q_linear = nn.Linear(width, width)
        self.cross_pos_k_linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(
                width,
                config.decoder_attention_heads,
                config.decoder_ffn_dim,
                config.attn_scale_factor,
                config.dropout,
                rate,
                index,
            )
            for index, rate in enumerate(linspace(config.drop_path, config.decoder_layers))
        )
        self.layer_norm = nn.LayerNorm(width)
        self.output_projection = nn.Linear(width, config.vocab_size, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        encoder: UnivalEncoderOutput,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        writes_codes: bool = False,
    ) -> Tensor:
        """Return features (B, T, D) of the target prefix.

        Args:
            input_ids: (B, T) prefix, or its last tokens when `cache` holds the earlier ones.
            encoder: Output of `UnivalEncoder`.
            cache: Key/value cache.
            attention_mask: (B, prefix length), 0 at padding; None when no prefix token is padding.
            writes_codes: The target is an image as codes: 2-D positions instead of text positions.
        """
        assert encoder.last_hidden_state is not None and encoder.attention_mask is not None
        assert encoder.position_embeddings is not None
        start = cache.get_seq_length() if cache is not None else 0
        length = start + input_ids.shape[1]
        norm = self.code_layernorm_embedding if writes_codes else self.layernorm_embedding
        x = norm(self.embed_tokens(input_ids))
        ids = None
        if writes_codes:
            ids = positions.code_ids(length, self.config.code_image_size, self.config.image_bucket_size)
            weight = self.embed_image_positions.weight
            position = self.image_pos_ln(weight[ids.to(weight.device)])
        else:
            position = self.text_position_embeddings(length)
        x = self.dropout(x)
        self_bias = self.absolute_bias(
            position[start:], position, self.self_pos_q_linear, self.self_pos_k_linear
        )
        self_bias = self_bias + causal_bias(start, length, x)
        if attention_mask is not None:
            self_bias = self_bias + mask_bias(attention_mask.bool(), x.dtype)
        source = encoder.position_embeddings[0][0]
        cross_bias = self.absolute_bias(
            position[start:], source, self.cross_pos_q_linear, self.cross_pos_k_linear
        )
        cross_bias = cross_bias + mask_bias(encoder.attention_mask, x.dtype)
        for index, layer in enumerate(self.layers):
            if ids is None:
                relative = self.text_bias(index, slice(start, length), length)
            else:
                relative = self.image_bias(index, ids[start:], ids)
            x = layer(x, self_bias + relative, encoder.last_hidden_state, cross_bias, cache)
        return self.layer_norm(x)


class UnivalPreTrainedModel(PreTrainedModel):
    """Weight initialisation and the marks that `transformers` needs."""

    config_class = UnivalConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]  # noqa: RUF012 (read by transformers)
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module: BERT style for linears and embeddings (specification 2.9), Kaiming for convolutions."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, 0.0, std)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.BatchNorm3d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
        elif isinstance(module, Attention):
            init.ones_(module.c_attn)
        elif isinstance(module, LogMel):
            init.copy_(module.melW, module.filter_bank())


class UnivalForConditionalGeneration(UnivalPreTrainedModel, GenerationMixin):
    """The whole model, with `generate` from `transformers`."""

    _tied_weights_keys = {  # noqa: RUF012 (read by transformers)
        "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
        "decoder.output_projection.weight": "encoder.embed_tokens.weight",
    }

    def __init__(self, config: UnivalConfig) -> None:
        super().__init__(config)
        self.encoder = UnivalEncoder(config)
        self.decoder = UnivalDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the tied embedding matrix (V, D)."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the tied embedding matrix."""
        self.encoder.embed_tokens = self.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output projection, tied to the embeddings."""
        return self.decoder.output_projection

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the encoder, which takes all media inputs."""
        return self.encoder

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
        **_: Any,
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
            past_key_values: Cache of `generate`.
            labels: (B, T) target ids; padding and -100 carry no loss. `loss` is their mean cross entropy.
            use_cache: Return and fill a cache.
        """
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("give input_ids or encoder_outputs")
            encoder_outputs = self.encoder(
                input_ids, attention_mask, pixel_values, pixel_values_videos, input_values, media_index
            )
        if labels is not None and decoder_input_ids is None:
            decoder_input_ids = self.shift_right(labels)
        assert decoder_input_ids is not None and encoder_outputs is not None
        if use_cache and past_key_values is None and labels is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        features = self.decoder(
            decoder_input_ids, encoder_outputs, past_key_values, decoder_attention_mask, writes_codes
        )
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
        )

    def shift_right(self, labels: Tensor) -> Tensor:
        """Return decoder inputs (B, T) for `labels` (B, T): `<s>` first, -100 replaced by padding."""
        start = labels.new_full((len(labels), 1), self.config.bos_token_id)
        return torch.cat(
            [start, labels[:, :-1].masked_fill(labels[:, :-1] == -100, self.config.pad_token_id)], dim=1
        )


def linspace(last: float, num: int) -> list[float]:
    """Return `num` evenly spaced drop-path rates from 0 to `last`."""
    return [last * index / max(num - 1, 1) for index in range(num)]


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean key mask (B, S) into an additive one (B, 1, 1, S): 0 where True, the dtype's minimum elsewhere."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None, :]


def causal_bias(start: int, length: int, like: Tensor) -> Tensor:
    """Return the additive causal mask (length - start, length) for queries at positions start..length-1."""
    future = torch.ones(length - start, length, dtype=torch.bool, device=like.device).triu(start + 1)
    zero = torch.zeros(length - start, length, dtype=like.dtype, device=like.device)
    return zero.masked_fill(future, torch.finfo(like.dtype).min)


AutoConfig.register("unival", UnivalConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(UnivalConfig, UnivalForConditionalGeneration, exist_ok=True)
