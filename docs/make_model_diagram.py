"""Write the generated parts of docs/model.md: the diagram and the table of sizes, from configs/model/*.yaml.

    python docs/make_model_diagram.py

The model runs once on the "meta" device, which computes shapes without memory; every number comes from that run.
`tests/docs/test_model_page.py` fails when the page is out of date.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from unival.config import load_config
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "model.md"
NUM_WORDS = 50_265  # BART's dictionary and <mask>
TEXT_LENGTH, TARGET_LENGTH = 8, 6
MODULES = {
    "token embedding (tied with the output)": "encoder.embed_tokens",
    "encoder layers": "encoder.layers",
    "decoder layers": "decoder.layers",
    "image encoder": "encoder.embed_images",
    "video encoder": "encoder.embed_videos",
    "audio encoder": "encoder.embed_audios",
}
SIZES = {
    "image": ("base", {"video_encoder": None}),
    "image + video (`base.yaml`)": ("base", {}),
    "+ audio (`base_audio.yaml`)": ("base_audio", {}),
    "`large.yaml`": ("large", {}),
}


class ModelFile(BaseModel):
    """A file of configs/model."""

    model: dict[str, Any]
    processor: dict[str, Any]
    tokenizer: dict[str, Any]


def build(name: str, changes: Mapping[str, Any]) -> tuple[UnivalForConditionalGeneration, dict[str, Any]]:
    """Return the model of a file with changed fields, without memory for weights, and the processor's settings."""
    file = load_config(ROOT / "configs" / "model" / f"{name}.yaml", [], ModelFile)
    counts = {"num_codes": file.tokenizer["num_codes"], "num_bins": file.tokenizer["num_bins"]}
    config = UnivalConfig(vocab_size=NUM_WORDS + sum(counts.values()), **counts, **(file.model | changes))
    with torch.device("meta"):
        return UnivalForConditionalGeneration(config).eval(), file.processor


def run(model: UnivalForConditionalGeneration, name: str, media: Tensor) -> tuple[str, str, int, str]:
    """Run the model on one medium; return the shapes of medium, features, the number of tokens, and the logits."""
    found: dict[str, Tensor] = {}
    backbone = model.get_submodule(f"encoder.embed_{name}s")
    if name == "image":
        forward = backbone.forward_features
        backbone.forward_features = lambda x: found.setdefault("features", forward(x))
    else:
        backbone.register_forward_hook(lambda *call: found.setdefault("features", call[2]))
    argument = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_values"}[name]
    ids = torch.ones(1, TEXT_LENGTH, dtype=torch.long, device="meta")
    encoded = model.encoder(ids, ids, **{argument: media})
    target = torch.ones(1, TARGET_LENGTH, dtype=torch.long, device="meta")
    logits = model.decoder.output_projection(model.decoder(target, encoded))
    num_tokens = encoded.last_hidden_state.shape[1] - TEXT_LENGTH
    return text_of(media), text_of(found["features"]), num_tokens, text_of(logits)


def text_of(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape[1:]))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def diagram() -> str:
    """Return the Mermaid source of the base model with all encoders."""
    model, sizes = build("base_audio", {})
    config = model.config
    frame, side = sizes["video_px"], sizes["image_px"]
    media = {
        "image": torch.empty(1, 3, side, side, device="meta"),
        "video": torch.empty(1, 3, sizes["num_frames"], frame, frame, device="meta"),
        "audio": torch.empty(1, int(sizes["sample_rate"] * sizes["audio_seconds"]), device="meta"),
    }
    title = {"image": "ResNet-101", "video": "3D ResNeXt-101", "audio": "log-mel, Cnn14"}
    lines = ["flowchart TB"]
    logits = ""
    for name, medium in media.items():
        shape, features, num_tokens, logits = run(model, name, medium)
        projection = model.get_submodule(f"encoder.{name}_proj")
        lines += [
            f'  {name}["{name}<br>{shape}"] --> {name}_net["{title[name]}<br>{features}"]',
            f'  {name}_net --> {name}_proj["Linear {projection.in_features} → {projection.out_features}<br>'
            f'{num_tokens} tokens"] --> media',
        ]
    width = config.d_model
    lines += [
        '  media["one medium per row: + type 1, LayerNorm"] --> join',
        f'  text["prompt<br>L ids"] --> words["embedding {config.vocab_size} x {width}, + type 0, LayerNorm"] --> join',
        '  join["media tokens, then text tokens"] --> '
        f'encoder["{config.encoder_layers} encoder layers<br>width {width}, '
        f'{config.encoder_attention_heads} heads, feed-forward {config.encoder_ffn_dim}"]',
        f'  bias["position biases<br>{num_heads_text(config)}"] -.-> encoder & decoder',
        f'  encoder --> decoder["{config.decoder_layers} decoder layers<br>width {width}, '
        f'{config.decoder_attention_heads} heads, feed-forward {config.decoder_ffn_dim}"]',
        '  prefix["written so far<br>T ids"] --> embed["same embedding, LayerNorm"] --> decoder',
        f'  decoder --> logits["same embedding, transposed<br>{logits.replace(str(TARGET_LENGTH), "T", 1)} logits"]',
    ]
    return "\n".join(lines)


def num_heads_text(config: UnivalConfig) -> str:
    """Describe the tables behind the biases."""
    grid, text = config.image_bucket_size, 2 * config.text_bucket_size - 1
    pairs = (2 * grid - 1) ** 2 + 3
    return (
        f"absolute: {grid} x {grid} grid, {config.max_text_positions} text; relative: {pairs} grid, {text} text pairs"
    )


def table() -> str:
    """Return the table of sizes: parameters per part, and per released model."""
    model, _ = build("base_audio", {})
    lines = ["| part of the base model | parameters |", "|---|---|"]
    lines += [f"| {title} | {count(model.get_submodule(name)):,} |" for title, name in MODULES.items()]
    lines += ["", "| model | parameters | of these never trained |", "|---|---|---|"]
    for title, (name, changes) in SIZES.items():
        model, _ = build(name, changes)
        fixed = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        lines.append(f"| {title} | {count(model):,} | {fixed:,} |")
    return "\n".join(lines)


def generated() -> dict[str, str]:
    """Return the generated blocks by name."""
    return {"diagram": f"```mermaid\n{diagram()}\n```", "sizes": table()}


def insert(page: str, blocks: Mapping[str, str]) -> str:
    """Return the page with the text between `<!-- name -->` and `<!-- /name -->` replaced."""
    for name, block in blocks.items():
        before, _, rest = page.partition(f"<!-- {name} -->")
        _, _, after = rest.partition(f"<!-- /{name} -->")
        page = f"{before}<!-- {name} -->\n{block}\n<!-- /{name} -->{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(insert(PAGE.read_text(encoding="utf-8"), generated()), encoding="utf-8")
