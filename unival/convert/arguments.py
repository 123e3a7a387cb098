"""Command-line arguments as the original stores them: what its loader reads to build the task and the model.

Its configuration is a dictionary of groups. `model` is a Namespace of everything that was on the command line,
`task` is merged into an option class that refuses names it does not know (specification 9.1).
"""

import argparse
from collections.abc import Mapping
from typing import Any

from unival.model.configuration import UnivalConfig

# Groups that the original's configuration has beside the ones that we fill; it looks them up by name.
GROUPS = (
    *("common", "common_eval", "distributed_training", "dataset", "optimization", "checkpoint", "bmuf", "generation"),
    *("eval_lm", "interactive", "model", "task", "criterion", "optimizer", "lr_scheduler", "scoring", "ema"),
)
# Choices that the original stores even when there is none.
CHOICES: dict[str, Any] = {"bpe": None, "tokenizer": None, "simul_type": None}
# Looked at while an old configuration is brought up to date.
READ_ON_LOADING: dict[str, Any] = {"print_alignment": None}
# Files that the original opens when it builds the model; the checkpoint has their weights.
PATHS = ("resnet_model_path", "video_model_path", "audio_model_path")

# Always on: in all released models, and in ours.
FLAGS = (
    *("encoder_normalize_before", "decoder_normalize_before", "share_decoder_input_output_embed"),
    *("share_all_embeddings", "layernorm_embedding", "patch_layernorm_embedding", "code_layernorm_embedding"),
    *("add_type_embedding", "scale_attn", "scale_fc", "scale_heads", "disable_entangle", "no_scale_embedding"),
    *("encoder_learned_pos", "decoder_learned_pos"),
)
# Never on: options whose effect our model does not have, or that only training looks at.
OFF = (
    *("entangle_position_embedding", "scale_resids", "sync_bn", "bitfit", "no_token_positional_embeddings"),
    *("no_cross_attention", "cross_self_attention", "adaptive_input", "tie_adaptive_weights", "no_seed_provided"),
    *("checkpoint_activations", "offload_activations", "fp16", "bf16", "amp", "tpu", "cpu"),
)
NONE = (
    *("encoder_embed_path", "decoder_embed_path", "encoder_layers_to_keep", "decoder_layers_to_keep"),
    *("adaptive_softmax_cutoff", "fusion_type", "sample_patch_num", "sample_video_patch_num"),
    *("sample_audio_patch_num", *PATHS),
)
_PARTS = ("_encoder", "_decoder", "_image", "_video", "_audio")
FIXED: dict[str, Any] = {
    "encoder_layerdrop": 0,
    "decoder_layerdrop": 0,
    "quant_noise_pq": 0,
    "quant_noise_pq_block_size": 8,
    "quant_noise_scalar": 0,
    "min_params_to_wrap": 100_000_000,
    "adaptive_softmax_dropout": 0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "relu_dropout": 0.0,
    "resnet_drop_path_rate": 0.0,
    "activation_fn": "gelu",
    "pooler_activation_fn": "tanh",
    "pooler_dropout": 0.0,
    "pooler_classifier": "mlp",
    "image_encoder_name": "timm_resnet",
    "fstride": 10,
    "tstride": 10,
    "input_tdim": 1024,
    "strict": True,
    "adapt_arch_for_init": True,
    **dict.fromkeys((f"unfreeze_epoch{part}" for part in ("", *_PARTS)), 0),
}
TASK: dict[str, Any] = {
    "data": "",
    "selected_cols": "0,4,2",
    "bpe": None,
    "bpe_dir": "utils/BPE",
    "max_src_length": 80,
    "max_tgt_length": 20,
    "imagenet_default_mean_and_std": False,
    "constraint_range": None,
    "read_from_img_path": False,
    "image_dir": "data",
    "no_image_transform": False,
    "audio_cfg": None,
    "sample_type": "rand",
    "audio_sample_rate": False,
    "ast": False,
    "use_dataaug": False,
    "eval_bleu": False,
    "eval_cider": False,
    "eval_args": "{}",
    "eval_print_samples": False,
    "eval_cider_cached_tokens": None,
    "scst": False,
    "scst_args": "{}",
}
DEPTHS = {(3, 4, 6, 3): "50", (3, 4, 23, 3): "101", (3, 8, 36, 3): "152"}


def native_settings(config: UnivalConfig, processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups `task` and `model` for a model that did not come from the original.

    Args:
        config: Of our model.
        processor: Fields of its processor.
    """
    task = TASK | _sizes(config, processor)
    model = {
        "_name": "unival_base",
        "arch": "unival_base",
        "task": "caption",
        **CHOICES,
        **task,
        **dict.fromkeys(FLAGS, True),
        **dict.fromkeys(OFF, False),
        **dict.fromkeys(NONE, None),
        **FIXED,
        **_transformer(config),
        **_encoders(config),
        **_tuning(config),
    }
    return {"task": {"_name": "caption"} | task, "model": model}


def _sizes(config: UnivalConfig, processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return what task and model both have: vocabulary and media."""
    rate = processor.get("sample_rate", 48000)
    return {
        "max_source_positions": config.max_text_positions,
        "max_target_positions": config.max_text_positions,
        "code_dict_size": config.num_codes,
        "num_bins": config.num_bins,
        "patch_image_size": processor.get("image_px", 480),
        "orig_patch_image_size": config.orig_patch_image_size,
        "patch_frame_size": processor.get("video_px", 384),
        "num_frames": processor.get("num_frames", 8),
        "sample_rate": rate,
        "max_audio_len": round(rate * processor.get("audio_seconds", 10.0)),
        "mel_bins": (config.audio_encoder or {}).get("mel_bins", 64),
    }


def _transformer(config: UnivalConfig) -> dict[str, Any]:
    width = config.d_model
    return {
        "encoder_embed_dim": width,
        "decoder_embed_dim": width,
        "decoder_input_dim": width,
        "decoder_output_dim": width,
        "encoder_ffn_embed_dim": config.encoder_ffn_dim,
        "decoder_ffn_embed_dim": config.decoder_ffn_dim,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.encoder_attention_heads,
        "decoder_attention_heads": config.decoder_attention_heads,
        "attn_scale_factor": config.attn_scale_factor,
        "token_bucket_size": config.text_bucket_size,
        "image_bucket_size": config.image_bucket_size,
        "code_image_size": config.code_image_size,
        "interpolate_position": config.interpolate_position,
        "vocab_size": config.vocab_size,
        "dropout": config.dropout,
        "encoder_drop_path_rate": config.drop_path,
        "decoder_drop_path_rate": config.drop_path,
    }


def _encoders(config: UnivalConfig) -> dict[str, Any]:
    image, video, audio = config.image_encoder, config.video_encoder, config.audio_encoder
    depth = DEPTHS.get(tuple((video or {}).get("depths", ())), "101")
    return {
        "resnet_type": (image or {}).get("name", "resnet101"),
        "freeze_resnet": bool((image or {}).get("frozen_norm")),
        "video_encoder_name": None if video is None else f"all_resnext{depth}",
        "freeze_resnet_video": bool((video or {}).get("frozen_norm")),
        "audio_encoder_name": None if audio is None else "pann_cnn14",
        "hop_size": (audio or {}).get("hop", 200),
    }


def _tuning(config: UnivalConfig) -> dict[str, Any]:
    """Return the options of adapters and learned prefixes; the lengths are the original's defaults without them."""
    found: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        length = getattr(config, f"{side}_prompt_length")
        found[f"{side}_prompt"] = length > 0
        found[f"{side}_prompt_type"] = "prefix"
        found[f"{side}_prompt_length"] = length or 100
        found[f"{side}_prompt_projection"] = config.prompt_hidden_dim > 0
        found[f"{side}_prompt_dim"] = config.prompt_hidden_dim or 2 * config.d_model
    if config.adapter_dim:
        kind = "VL" if config.adapter_per_modality else "plain"
        found |= {"adapter": True, "adapter_dim": config.adapter_dim, "adapter_type": kind}
    return found


def complete(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as the original stores it: plain groups, and the model's arguments in a Namespace.

    Args:
        cfg: Stored groups as plain data; those that are absent are filled with what the loader asks for.
    """
    groups: dict[str, Any] = CHOICES | {name: {"_name": None} for name in GROUPS} | dict(cfg)
    if "generation" not in cfg:
        groups["generation"] = groups["generation"] | READ_ON_LOADING
    model = dict(groups["model"]) if isinstance(groups["model"], Mapping) else {}
    model |= {name: None for name in PATHS if name in model}
    task = dict(groups["task"]) if isinstance(groups["task"], Mapping) else {}
    if not task.get("_name"):  # the task and its options are among the model's arguments as well
        names = {*TASK, *_sizes(UnivalConfig(), {})}
        known = {name: value for name, value in model.items() if name in names}
        groups["task"] = known | task | {"_name": model.get("task") or "caption"}
    return groups | {"model": argparse.Namespace(**model)}
