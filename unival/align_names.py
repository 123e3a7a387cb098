"""Align what the encoders see with the words for it, before the curriculum begins.

    python -m unival.align_names configs/pretrain/tiny.yaml --out runs/aligned

The encoders of `unival.pretrain_encoder` tell concepts apart, but the Transformer would have to learn the name of each
by itself. Here the projections of the encoders and the table of token embeddings are fitted so that the token of a cell
points at the tokens of the name under it: logit = token . mean of the name's embeddings. What is left for the
curriculum is to copy, to order and to relate. The encoders and everything else stay as they are. (The paper starts from
BART, whose embeddings know their words, and has days of pretraining for the rest.)
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from unival.checkpoint import save_model
from unival.config import load_config
from unival.data import world
from unival.model.modeling import MEDIA_INPUTS, UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.pretrain_encoder import LOG_EVERY, NONE_WEIGHT, Cells, feature_grid
from unival.schema import RunConfig
from unival.train import start

BATCH = {"image": 24, "video": 8}


def spelling(processor: UnivalProcessor, names: Sequence[str], vocab_size: int) -> Tensor:
    """Return (names, V): each row averages over the tokens of a name as it stands inside a caption."""
    table = torch.zeros(len(names), vocab_size)
    for row, ids in enumerate(processor.encode(names)):
        for token in ids[1:-1]:
            table[row, token] += 1.0 / (len(ids) - 2)
    return table


def fit(model: UnivalForConditionalGeneration, processor: UnivalProcessor, steps: int, lr: float) -> None:
    """Fit projections and token embeddings in place, and print how often a cell points at the right name."""
    encoder = model.encoder.eval()
    names = spelling(processor, [concept.name for concept in world.concepts()], model.config.vocab_size)
    none = torch.zeros(1, model.config.d_model, requires_grad=True)
    trained = [none, encoder.embed_tokens.weight, *encoder.patch_layernorm_embedding.parameters()]
    streams = {}
    for modality, batch in BATCH.items():
        trained += encoder.get_submodule(f"{modality}_proj").parameters()
        cells = Cells(modality, "train", batch, feature_grid(model, modality), {"seed": 6})
        streams[modality] = iter(DataLoader(cells, batch_size=None, num_workers=1))
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    start_time, right = time.monotonic(), dict.fromkeys(BATCH, 0.0)
    for step in range(1, steps + 1):
        classes = torch.cat([none, names @ encoder.embed_tokens.weight])
        total = torch.zeros(())
        for modality, stream in streams.items():
            media, labels, *_ = next(stream)
            encoded = encoder.encode_media(**{MEDIA_INPUTS[modality]: media})
            assert encoded is not None  # there is a medium
            logits, wanted = encoded.tokens.flatten(0, 1) @ classes.T, labels.flatten() + 1
            weights = torch.where(wanted > 0, 1.0, NONE_WEIGHT)
            total = total + (F.cross_entropy(logits, wanted, reduction="none") * weights).sum() / weights.sum()
            right[modality] += (logits.argmax(1) == wanted)[wanted > 0].float().mean().item() / LOG_EVERY
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        schedule.step()
        if step % LOG_EVERY == 0:
            shares = " ".join(f"{modality} {share:.3f}" for modality, share in right.items())
            print(f"step {step} {time.monotonic() - start_time:.0f} s {shares}", flush=True)
            right = dict.fromkeys(BATCH, 0.0)
    model.requires_grad_(True)


def main() -> None:
    """Build the model of a configuration, fit, write a model folder for its `init`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--lr", type=float, default=3e-3)
    arguments = parser.parse_args()
    config = load_config(arguments.config, [], RunConfig).model_copy(update={"init": None})
    torch.manual_seed(config.seed)
    model, processor = start(config)
    fit(model, processor, arguments.steps, arguments.lr)
    save_model(arguments.out, model, processor)


if __name__ == "__main__":
    main()
