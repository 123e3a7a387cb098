"""Write the small copy of the loss cases that the tests use where the recordings are not.

    UNIVAL_GOLDEN=/path/to/golden python -m tests.parity.make_loss_copy

All cases look at the same three pictures: what the backbone and its projection make of them is kept, so that no
backbone is needed. Gradient norms are kept for a few parameters.
"""

import json

import torch
from safetensors.torch import save_file

from tests.parity import golden
from unival.model.image import image_features

GROUP = "tiny_loss"
PARAMETERS = (
    "encoder.embed_tokens.weight",
    "encoder.type_embedding.weight",
    "encoder.layers.0.self_attn.c_attn",
    "encoder.layers.1.fc1.weight",
    "encoder.image_rel_pos_table_list.0.weight",
    "encoder.token_rel_pos_table_list.1.weight",
    "encoder.pos_q_linear.weight",
    "decoder.layers.0.self_attn.k_proj.weight",
    "decoder.layers.1.encoder_attn.v_proj.weight",
    "decoder.cross_pos_k_linear.weight",
    "decoder.token_rel_pos_table_list.1.weight",
    "decoder.layer_norm.bias",
)


def main() -> None:
    """Compute the picture features, and copy the cases in evaluation mode that the original can compute."""
    cases, tensors, recorded = [], {}, golden.recorded(GROUP)
    for case in golden.read_cases(GROUP):
        if case["train_mode"] or "outputs" not in case:
            continue
        outputs = case["outputs"]
        norms = {name: outputs["grad_norms"][name] for name in PARAMETERS if name in outputs["grad_norms"]}
        case["outputs"] = {key: value for key, value in outputs.items() if key not in ("grads", "buffers_after")}
        case["outputs"]["grad_norms"] = norms
        for entry in case["inputs"].values():
            if "tensor" in entry:
                tensors[entry["tensor"]] = recorded[entry["tensor"]].contiguous()
        cases.append(case)
    model = golden.build_tiny(has_encoders=True)
    with torch.no_grad():
        images = golden.value(golden.find(GROUP, "ce_plain"), GROUP, "patch_images")
        features = image_features(model.encoder.embed_images, images)  # N C H W
        projected = model.encoder.image_proj(features.flatten(2).transpose(1, 2))  # N P D
    grid = features.shape[2:]
    golden.COPY.mkdir(parents=True, exist_ok=True)
    save_file(tensors, golden.COPY / f"{GROUP}.safetensors")
    pictures = projected.transpose(1, 2).unflatten(2, grid).contiguous()
    save_file({"projected": pictures}, golden.COPY / "loss_pictures.safetensors")
    lines = ",\n".join(json.dumps(case) for case in cases)
    (golden.COPY / f"{GROUP}.json").write_text(f'{{"cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
