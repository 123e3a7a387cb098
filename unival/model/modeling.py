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
from unival.model.bias import PositionBias, causal_bias, mask_bias
from unival.model.configuration import UnivalConfig
from unival.model.image import build_image_encoder, image_features
from unival.model.layers import Attention, DecoderLayer, EncoderLayer, drop_path_rates
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
    """Encoded media of one modality: tokens (N, P, D), their position embeddings (P, D), grid ids (P,) on the CPU."""

    tokens: Tensor
    positions: Tensor
    ids: Tensor


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
            for rate in drop_path_rates(config.drop_path, config.encoder_layers)
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
            raise ValueError(f"this model has no {modality} encoder: add `{modality}_encoder` to its configuration")
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
            for index, rate in enumerate(drop_path_rates(config.drop_path, config.decoder_layers))
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
        assert encoder.last_hidden_state is not None
        assert encoder.attention_mask is not None
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
        self_bias = self.absolute_bias(position[start:], position, self.self_pos_q_linear, self.self_pos_k_linear)
        self_bias = self_bias + causal_bias(start, length, x)
        if attention_mask is not None:
            self_bias = self_bias + mask_bias(attention_mask.bool(), x.dtype)
        source = encoder.position_embeddings[0][0]
        cross_bias = self.absolute_bias(position[start:], source, self.cross_pos_q_linear, self.cross_pos_k_linear)
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
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module: BERT style for linears and embeddings (specification 2.9), Kaiming for convolutions."""
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

    _tied_weights_keys = {
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
        if decoder_input_ids is None:
            raise ValueError("give decoder_input_ids or labels")
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
        return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == -100, self.config.pad_token_id)], dim=1)


AutoConfig.register("unival", UnivalConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(UnivalConfig, UnivalForConditionalGeneration, exist_ok=True)
