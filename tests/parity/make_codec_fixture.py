"""Record what taming-transformers computes with weights of a formula, for `test_codec_taming_parity.py`.

    pip install taming-transformers-rom1504 einops     # or unpack its wheel and put the folder on PYTHONPATH
    python -m tests.parity.make_codec_fixture

The package's own encoder, decoder and quantisers run; nothing of them is stored but numbers.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PATH = Path(__file__).parent / "data" / "codec_taming.json"
CASES: dict[str, dict[str, Any]] = {
    "gumbel": {
        "channels": 32,
        "multipliers": [1, 2, 2],
        "res_blocks": 1,
        "attention": [2],
        "num_codes": 24,
        "width": 32,
    },
    "nearest": {"channels": 32, "multipliers": [1, 1], "res_blocks": 2, "attention": [], "num_codes": 16, "width": 8},
}
SIDE = 16


def weight(name: str, shape: torch.Size) -> Tensor:
    """Return a weight as a function of its name and shape only (the recipe of specification 13.1)."""
    phase = (zlib.crc32(name.encode()) % 10007) / 10007 * 2 * math.pi
    wave = torch.sin(0.37 * torch.arange(1, shape.numel() + 1, dtype=torch.float64) + phase).view(shape)
    if len(shape) == 1:
        wave = 1 + 0.1 * wave if name.endswith("weight") else 0.02 * wave
    else:
        wave = math.sqrt(2 / math.prod(shape[1:])) * wave
    return wave.float().double()  # exact in both


def pixels() -> Tensor:
    """Return two pictures (2, 3, SIDE, SIDE)."""
    x = torch.arange(SIDE, dtype=torch.float64) + 1
    channel = torch.arange(1, 4, dtype=torch.float64)[:, None, None]
    first = torch.sin(0.21 * channel * x[:, None] + 0.13 * x)
    return torch.stack([first, first.flip(2) * 0.5])


def reference(case: dict[str, Any], is_gumbel: bool) -> Any:
    """Return taming's modules under the names of its checkpoints."""
    from taming.modules.diffusionmodules.model import Decoder, Encoder  # pyright: ignore[reportMissingImports]
    from taming.modules.vqvae.quantize import (  # pyright: ignore[reportMissingImports]
        GumbelQuantize,
        VectorQuantizer2,
    )

    width = case["width"]
    sizes = {
        "ch": case["channels"],
        "out_ch": 3,
        "ch_mult": case["multipliers"],
        "num_res_blocks": case["res_blocks"],
        "attn_resolutions": [SIDE // 2**level for level in case["attention"]],
        "in_channels": 3,
        "resolution": SIDE,
        "z_channels": width,
        "double_z": False,
    }
    quantizer = (
        GumbelQuantize(width, width, n_embed=case["num_codes"])
        if is_gumbel
        else VectorQuantizer2(case["num_codes"], width, beta=0.25)
    )
    parts = {
        "encoder": Encoder(**sizes),
        "decoder": Decoder(**sizes),
        "quantize": quantizer,
        "quant_conv": nn.Conv2d(width, width, 1),
        "post_quant_conv": nn.Conv2d(width, width, 1),
    }
    return nn.ModuleDict(parts).double().eval()


@torch.no_grad()
def record(case: dict[str, Any], is_gumbel: bool) -> dict[str, Any]:
    """Return names, features, codes and pixels."""
    model = reference(case, is_gumbel)
    state = {name: weight(name, tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    features = model["quant_conv"](model["encoder"](pixels()))
    if is_gumbel:  # its forward pass adds noise
        codes = model["quantize"].proj(features).argmax(1)
        table = model["quantize"].float()  # the only part that computes in float32
        vectors = table.get_codebook_entry(codes.flatten(), (*codes.shape, case["width"])).double()
    else:
        vectors, _, (_, _, found) = model["quantize"](features)
        codes = found.view(len(features), *features.shape[2:])
    restored = model["decoder"](model["post_quant_conv"](vectors))
    return {
        "case": case,
        "names": {name: list(tensor.shape) for name, tensor in state.items()},
        "features": features.flatten()[::7].tolist(),
        "codes": codes.tolist(),
        "pixels": restored.flatten()[::37].tolist(),
    }


if __name__ == "__main__":
    recorded = {name: record(case, name == "gumbel") for name, case in CASES.items()}
    PATH.write_text(json.dumps({"made_by": "make_codec_fixture.py", "cases": recorded}) + "\n", encoding="utf-8")
    print(PATH, PATH.stat().st_size)
