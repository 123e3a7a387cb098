"""The decoder: a Transformer over the target prefix that reads the encoder's output (specification 2.4).

Shapes: B rows, T target tokens, S source tokens, D width, H heads, V vocabulary.
"""

from torch import Tensor, nn
from transformers.cache_utils import Cache

from unival.model import positions
from unival.model.bias import PositionBias, causal_bias, mask_bias, relative_bias
from unival.model.configuration import UnivalConfig
from unival.model.encoder import UnivalEncoderOutput
from unival.model.layers import DecoderLayer, drop_path_rates
from unival.model.linear import Linear
from unival.model.tuning import Adapter, PrefixEncoder, all_rows


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
                Adapter(width, config.adapter_dim) if config.adapter_dim else None,
            )
            for index, rate in enumerate(drop_path_rates(config.drop_path, config.decoder_layers))
        )
        self.layer_norm = nn.LayerNorm(width)
        self.output_projection = Linear(width, config.vocab_size, bias=False)
        if config.decoder_prompt_length:
            self.decoder_prompt_encoder = PrefixEncoder(
                width,
                config.decoder_layers,
                config.decoder_attention_heads,
                config.decoder_prompt_length,
                config.prompt_hidden_dim,
            )

    def forward(
        self,
        input_ids: Tensor,
        encoder: UnivalEncoderOutput,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        writes_codes: bool = False,
        states: list[Tensor] | None = None,
        keeps_weights: bool = False,
    ) -> Tensor:
        """Return features (B, T, D) of the target prefix.

        Args:
            input_ids: (B, T) prefix, or its last tokens when `cache` holds the earlier ones.
            encoder: Output of `UnivalEncoder`; it may have one row for several consecutive rows here, such as beams.
            cache: Key/value cache.
            attention_mask: (B, prefix length), 0 at padding; None when no prefix token is padding.
            writes_codes: The target is an image as codes: 2-D positions instead of text positions.
            states: Receives what every layer was given, then the features.
            keeps_weights: Let the attention of every layer keep its weights (`layers.take_weights`).
        """
        assert encoder.last_hidden_state is not None
        assert encoder.attention_mask is not None
        assert encoder.position_embeddings is not None
        start = cache.get_seq_length() if cache is not None else 0
        length = start + input_ids.shape[1]
        norm = self.code_layernorm_embedding if writes_codes else self.layernorm_embedding
        x = self.dropout(norm(self.embed_tokens(input_ids)))
        if writes_codes:
            ids = positions.code_ids(length, self.config.code_image_size, self.config.image_bucket_size, x.device)
            position, table = self.image_pos_ln(all_rows(self.embed_image_positions)[ids]), self.image_table
            buckets = self.image_buckets(ids[start:], ids)
        else:
            position, table = self.text_position_embeddings(length), self.text_table
            buckets = self.text_buckets(start, length)
        position = position[None]  # 1 T D
        query = position[:, start:]
        self_bias = self.absolute_bias(query, position, self.self_pos_q_linear, self.self_pos_k_linear)
        self_bias = self_bias + causal_bias(start, length, x)
        if attention_mask is not None:
            self_bias = self_bias + mask_bias(attention_mask.bool(), x.dtype)
        source = encoder.position_embeddings[0]
        cross_bias = self.absolute_bias(query, source, self.cross_pos_q_linear, self.cross_pos_k_linear)
        cross_bias = cross_bias + mask_bias(encoder.attention_mask, x.dtype)
        memory = encoder.last_hidden_state
        prefixes = self.decoder_prompt_encoder() if self.config.decoder_prompt_length else [None] * len(self.layers)
        for index, (layer, prefix) in enumerate(zip(self.layers, prefixes, strict=True)):
            if states is not None:
                states.append(x)
            layer_bias = self_bias + relative_bias(table(index), buckets)
            x = self.run_layer(layer, x, layer_bias, memory, cross_bias, cache, prefix, keeps_weights)
        x = self.layer_norm(x)
        if states is not None:
            states.append(x)
        return x
