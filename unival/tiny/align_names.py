"""Align what the encoders see with the words for it, before the curriculum begins.

    python -m unival.tiny.align_names configs/pretrain/tiny.yaml --out runs/aligned

The encoders of `unival.tiny.pretrain_encoder` tell concepts apart, but the Transformer would have to learn the word for
each by itself. Here the projections of the encoders and the table of token embeddings are fitted so that the token of
a cell points at the tokens of the name under it: logit = token . mean of the name's embeddings. One linear map each,
thrown away afterwards, also leads from the token to the words for the background's colour, the group and the motion,
and to the position bins of the box, whose embeddings start as smooth functions of the position. In the other
direction, two heads of the first encoder layer learn to look from a token of a name to the cells that show it. What
is left for the curriculum is to copy, to order and to relate. The encoders and everything else stay as they are. (The
paper starts from BART, whose embeddings know their words, and has days of pretraining for the rest.)
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from unival.checkpoint import save_model
from unival.config import load_config
from unival.data import world
from unival.model.encoder import UnivalEncoder
from unival.model.layers import EncoderLayer
from unival.model.modeling import MEDIA_INPUTS, UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.schema import RunConfig
from unival.tiny.pretrain_encoder import COLOURS, LOG_EVERY, MOTIONS, NONE_WEIGHT, Cells, feature_grid
from unival.train import start

BATCH = {"image": 24, "video": 8}
READING_WEIGHT = 0.3  # of group, colour, motion and each side of the box, beside the name
SMOOTHNESS = 12.0  # of position bins: half waves over the picture in their embedding, at most
LOOKUP_HEADS = 2  # of the first encoder layer: from a word to what it names
BOX_SIDES = ("x0", "y0", "x1", "y1")


def spelling(processor: UnivalProcessor, names: Sequence[str], vocab_size: int) -> Tensor:
    """Return (names, V): each row averages over the tokens of a name as it stands inside a caption."""
    table = torch.zeros(len(names), vocab_size)
    for row, ids in enumerate(processor.encode(names)):
        for token in ids[1:-1]:
            table[row, token] += 1.0 / (len(ids) - 2)
    return table


def smooth_bins(num_bins: int, width: int) -> Tensor:
    """Return embeddings (num_bins, width) of unit variance in which neighbouring positions are alike."""
    waves = torch.linspace(0.0, SMOOTHNESS, width // 2) * torch.pi
    angles = torch.linspace(0.0, 1.0, num_bins)[:, None] * waves + torch.rand(width // 2) * 2 * torch.pi
    return torch.cat([angles.sin(), angles.cos()], 1)[:, torch.randperm(2 * (width // 2))] * 2**0.5


class Readings(nn.Module):
    """What the token of a cell should say, as words."""

    def __init__(self, processor: UnivalProcessor, vocab_size: int, width: int) -> None:
        super().__init__()
        groups = list(world.concepts_by_group())
        self.words = {
            "name": spelling(processor, [concept.name for concept in world.concepts()], vocab_size),
            "group": spelling(processor, groups, vocab_size),
            "colour": spelling(processor, COLOURS, vocab_size),
            "motion": spelling(processor, MOTIONS, vocab_size),
        }
        bins = processor.tokenizer.convert_tokens_to_ids([f"<bin_{i}>" for i in range(processor.num_bins)])
        self.bins, self.num_bins = torch.tensor(bins), processor.num_bins
        self.group_of = torch.tensor([groups.index(concept.group) for concept in world.concepts()])
        self.spellings = [ids[1:-1] for ids in processor.encode([concept.name for concept in world.concepts()])]
        self.none = nn.Parameter(torch.zeros(1, width))
        maps = ("group", "colour", "motion", *BOX_SIDES)
        self.maps = nn.ModuleDict({name: nn.Linear(width, width) for name in maps})

    def loss(self, tokens: Tensor, table: Tensor, cells: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of tokens (B, S, D) for the labels of their cells, and the shares that are read right."""
        labels, motions, boxes, colours = (cell.flatten(0, cells[0].dim() - 1) for cell in cells)
        tokens = tokens.flatten(0, 1)
        inside = labels >= 0
        logits = tokens @ torch.cat([self.none, self.words["name"] @ table]).T
        weights = torch.where(inside, 1.0, NONE_WEIGHT)
        total = (F.cross_entropy(logits, labels + 1, reduction="none") * weights).sum() / weights.sum()
        shares = {"name": (logits.argmax(1) == labels + 1)[inside].float().mean().item()}
        wanted = {"group": self.group_of[labels.clamp(min=0)].where(inside, -1), "colour": colours, "motion": motions}
        answers = {name: (self.words[name] @ table, target) for name, target in wanted.items()}
        positions = (boxes.clamp(0, 1) * (self.num_bins - 1)).round().long().where(inside[:, None], -1)
        answers |= {side: (table[self.bins], positions[:, k]) for k, side in enumerate(BOX_SIDES)}
        for name, (words, target) in answers.items():
            known = target >= 0
            if known.any():
                guesses = self.maps[name](tokens[known]) @ words.T
                total = total + READING_WEIGHT * F.cross_entropy(guesses, target[known])
                near = 2 if name in BOX_SIDES else 0  # bins
                shares[name] = ((guesses.argmax(1) - target[known]).abs() <= near).float().mean().item()
        return total, shares

    def lookup(self, encoder: UnivalEncoder, tokens: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Return the loss of finding the cells (B, S) of named concepts among media tokens (B, S, D).

        One token of each name that is shown asks, as it does in a prompt; its loss is minus the logarithm of the
        attention that the right cells get. Also returns the mean of that attention.
        """
        layer = cast(EncoderLayer, encoder.layers[0])
        numbers = torch.arange(len(labels))[:, None].expand_as(labels)
        rows, concepts = torch.stack([numbers, labels]).flatten(1).unique(dim=1)
        rows, concepts = rows[concepts >= 0], concepts[concepts >= 0]
        spelled = [self.spellings[concept] for concept in concepts.tolist()]
        ids = torch.tensor([choice[int(torch.randint(len(choice), ()))] for choice in spelled])
        words = encoder.layernorm_embedding(encoder.embed_tokens.weight[ids] + encoder.type_embedding.weight[0])
        attention = layer.self_attn
        query = attention.q_proj(layer.self_attn_layer_norm(words)).unflatten(-1, (attention.num_heads, -1))
        key = attention.k_proj(layer.self_attn_layer_norm(tokens)).unflatten(-1, (attention.num_heads, -1))[rows]
        query, key = query[:, :LOOKUP_HEADS], key[:, :, :LOOKUP_HEADS]
        weights = (torch.einsum("nhk,nshk->nhs", query, key) * attention.scale).log_softmax(-1)  # N H S
        right = (labels[rows] == concepts[:, None])[:, None]
        found = weights.masked_fill(~right, -torch.inf).logsumexp(-1)
        return -found.mean(), found.exp().mean().item()


def parameters_to_fit(encoder: UnivalEncoder, readings: Readings) -> list[Tensor]:
    """Return what `fit` changes: embeddings, projections and the two heads."""
    trained = [*readings.parameters(), encoder.embed_tokens.weight, *encoder.patch_layernorm_embedding.parameters()]
    for modality in BATCH:
        trained += encoder.get_submodule(f"{modality}_proj").parameters()
    attention = cast(EncoderLayer, encoder.layers[0]).self_attn
    return [*trained, attention.q_proj.weight, attention.k_proj.weight]


def fit(model: UnivalForConditionalGeneration, processor: UnivalProcessor, steps: int, lr: float) -> None:
    """Fit in place, and print how often a cell is read right and found."""
    encoder = model.encoder.eval()
    readings = Readings(processor, model.config.vocab_size, model.config.d_model)
    table = encoder.embed_tokens.weight
    trained = parameters_to_fit(encoder, readings)
    with torch.no_grad():
        table[readings.bins] = smooth_bins(processor.num_bins, table.shape[1]) * table.std()
    streams = {}
    for modality, batch in BATCH.items():
        cells = Cells(modality, "train", batch, feature_grid(model, modality), {"seed": 6})
        streams[modality] = iter(DataLoader(cells, batch_size=None, num_workers=1))
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    start_time, sums = time.monotonic(), dict[str, float]()
    for step in range(1, steps + 1):
        total = torch.zeros(())
        for modality, stream in streams.items():
            media, *cells = next(stream)
            encoded = encoder.encode_media(**{MEDIA_INPUTS[modality]: media})
            assert encoded is not None  # there is a medium
            found, share = readings.lookup(encoder, encoded.tokens, cells[0].flatten(1))
            loss, shares = readings.loss(encoded.tokens, table, cells)
            shares["lookup"] = share
            total = total + loss + found
            for name, share in shares.items():
                sums[f"{modality} {name}"] = sums.get(f"{modality} {name}", 0.0) + share / LOG_EVERY
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        schedule.step()
        if step % LOG_EVERY == 0:
            shares = " ".join(f"{name} {share:.3f}" for name, share in sums.items())
            print(f"step {step} {time.monotonic() - start_time:.0f} s {shares}", flush=True)
            sums.clear()
    model.requires_grad_(True)


def main() -> None:
    """Build the model of a configuration, fit, write a model folder for its `init`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--lr", type=float, default=3e-3)
    arguments = parser.parse_args()
    config = load_config(arguments.config, [], RunConfig)
    torch.manual_seed(config.seed)
    model, processor = start(config.model_copy(update={"init": None}))
    fit(model, processor, arguments.steps, arguments.lr)
    save_model(arguments.out, model, processor)


if __name__ == "__main__":
    main()
