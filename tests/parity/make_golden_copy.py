"""Write the small copy of the tiny model's forward and search cases that the tests use where the recordings are not.

    UNIVAL_GOLDEN=/path/to/golden python -m tests.parity.make_golden_copy

Media cases keep the projected features, so that no backbone is needed; long outputs are thinned out.
"""

import json

import torch
from safetensors.torch import save_file

from tests.parity import golden

GROUP = "tiny_forward"
NAMES = (
    "text",
    "image_rect",
    "interp_480",
    "image_masked",
    "video_8f",
    "audio",
    "grounding",
    "code_prefix",
    "code_mixed",
)
OUTPUTS = (
    "encoder_padding_mask",
    "encoder_out",
    "position_embeddings",
    "decoder_features",
    "logits_logsumexp",
    "logits_top5_values",
)
MAX_TOKENS = 24  # of encoder outputs


def main() -> None:
    """Copy the cases, with every n-th token of encoder outputs that are longer than `MAX_TOKENS`."""
    tensors, cases = {}, []
    recorded = golden.recorded(GROUP)
    for name in NAMES:
        case = golden.find(GROUP, name)
        modality = golden.modality_of(case)
        if modality is not None:
            case["feature_grid"] = list(golden.feature_grid(case))
            tensors[f"{name}/out/{modality}_projected"] = recorded[f"{name}/out/{modality}_projected"]
        case["outputs"] = {output: case["outputs"][output] for output in OUTPUTS}
        for output, entry in case["outputs"].items():
            tensor = recorded[entry["tensor"]]
            if output in {"encoder_out", "position_embeddings"} and "slice" not in entry:
                step = -(-tensor.shape[1] // MAX_TOKENS)
                entry["slice"] = {"dim": 1, "step": step}
                tensor = tensor[:, ::step]
            tensors[entry["tensor"]] = tensor
        used = {entry["tensor"] for entry in case["inputs"].values() if "tensor" in entry}
        tensors |= {key: recorded[key] for key in used}
        cases.append(case)
    golden.COPY.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: torch.clone(tensor).contiguous() for key, tensor in tensors.items()}, golden.COPY / f"{GROUP}.safetensors"
    )
    text = json.dumps({"cases": cases}, indent=1, ensure_ascii=False)
    (golden.COPY / f"{GROUP}.json").write_text(text + "\n", encoding="utf-8")


def copy_searches() -> None:
    """Copy the searches that need no medium, with their prompts written out."""
    cases = [case for case in golden.read_cases("tiny_search") if golden.modality_of(case) is None]
    for case in cases:
        case["inputs"] = {name: {"value": golden.value(case, "tiny_search", name).tolist()} for name in case["inputs"]}
    text = json.dumps({"cases": cases}, ensure_ascii=False)
    (golden.COPY / "tiny_search.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
    copy_searches()
