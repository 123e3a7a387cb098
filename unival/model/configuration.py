"""Configuration of the unified encoder-decoder: every size in one place, encoders chosen by name."""

from typing import Any

from transformers import PreTrainedConfig


class UnivalConfig(PreTrainedConfig):
    """Sizes and parts of a UnIVAL model (arXiv 2307.16184, section 3; defaults are the tiny model's).

    Vocabulary layout: text tokens first (ids 0-3 are `<s> <pad> </s> <unk>`), then `num_codes` image codes, then
    `num_bins` position bins; `vocab_size` counts all of them.

    Attributes:
        d_model: Width D of encoder and decoder.
        encoder_layers, decoder_layers, encoder_ffn_dim, decoder_ffn_dim: Depth and feed-forward width.
        encoder_attention_heads, decoder_attention_heads: Heads; D must be a multiple of both.
        attn_scale_factor: Logits are divided by sqrt(factor * head width), for content and positions alike.
        dropout, drop_path: Rates of residual dropout and of stochastic depth (the rate of the last layer).
        max_text_positions: Rows of the text position tables minus two.
        text_bucket_size: Half the range of the relative text-text table.
        image_bucket_size: Side of the largest media grid, in tokens.
        code_image_size: Side in pixels of an image written as codes (grid side = size / 8).
        image_encoder: `{"name": timm model, "out_index": feature level, **timm arguments}` or None.
        video_encoder: Arguments of `ResNeXt3D` or None.
        audio_encoder: Arguments of `PannCNN` or None.
    """

    model_type = "unival"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
    }

    vocab_size: int = 1700
    num_codes: int = 64
    num_bins: int = 100
    d_model: int = 192
    encoder_layers: int = 3
    decoder_layers: int = 3
    encoder_ffn_dim: int = 768
    decoder_ffn_dim: int = 768
    encoder_attention_heads: int = 6
    decoder_attention_heads: int = 6
    attn_scale_factor: float = 2.0
    dropout: float = 0.0
    drop_path: float = 0.0
    max_text_positions: int = 128
    text_bucket_size: int = 32
    image_bucket_size: int = 12
    code_image_size: int = 64
    image_encoder: dict[str, Any] | None = None
    video_encoder: dict[str, Any] | None = None
    audio_encoder: dict[str, Any] | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    is_encoder_decoder: bool = True
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    decoder_start_token_id: int = 0
    tie_word_embeddings: bool = True
