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
        interpolate_position: Pictures with more patches than the grid of `orig_patch_image_size` (side / 16) get the
            absolute positions of that grid, resized bilinearly; off in all released models.
        orig_patch_image_size: Side in pixels of the pictures that the position table was trained with.
        sample_patch_num: Media tokens kept, drawn anew for each row by Python's `random`; None keeps all. It acts in
            evaluation too, as in the original, so it is never taken over from released files.
        adapter_dim: Width of an adapter after every feed-forward half; 0 for none.
        adapter_per_modality: Encoder layers have one adapter for media tokens and one for text (the original's `VL`).
        encoder_prompt_length, decoder_prompt_length: Learned keys and values before those of self-attention; 0: none.
        prompt_hidden_dim: Width of the network that computes them; 0 learns them directly.
        lora_rank, lora_alpha: Low-rank updates of the query and value projections, scaled by alpha / rank; 0 for none.
        image_encoder: Options of `build_image_encoder`: `{"name": timm model, "out_index": level, ...}` or None.
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
    interpolate_position: bool = False
    orig_patch_image_size: int = 256
    sample_patch_num: int | None = None
    adapter_dim: int = 0
    adapter_per_modality: bool = False
    encoder_prompt_length: int = 0
    decoder_prompt_length: int = 0
    prompt_hidden_dim: int = 0
    lora_rank: int = 0
    lora_alpha: float = 16.0
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
