"""The specification written down as directly as possible, for `benchmarks/model.py` to compare with.

Functions of a state dict, eager, float32: channels-first convolutions, attention as matrix products and a softmax,
biases rebuilt for the whole prefix at every decoding step, self-attention keys and values cached and reordered, the
encoder's output repeated for every beam. This is what the original does; nothing here is meant to be fast or general.

Shapes: B rows, P media tokens, L text tokens, S = P + L, T target tokens, D width, H heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unival.model import positions
from unival.model.configuration import UnivalConfig

Cache = dict[str, Tensor]


class Plain:
    """Image and text in, logits out, on the weights `w` of a UnIVAL model with a bottleneck ResNet."""

    def __init__(self, w: Mapping[str, Tensor], config: UnivalConfig, training: bool = False) -> None:
        self.w, self.config, self.training = w, config, training
        self.heads = config.encoder_attention_heads
        self.scale = (config.d_model // self.heads * config.attn_scale_factor) ** -0.5
        self.text_table = positions.text_buckets(config.text_bucket_size, config.max_text_positions)
        self.image_table = positions.image_buckets(config.image_bucket_size)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    # The image encoder (2.6)

    def conv(self, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        """Convolution and batch norm."""
        weight = self.w[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance = self.w[f"{norm}.running_mean"], self.w[f"{norm}.running_var"]
        return F.batch_norm(x, mean, variance, self.w[f"{norm}.weight"], self.w[f"{norm}.bias"], self.training)

    def backbone(self, pixels: Tensor) -> Tensor:
        """Return media features (B, P, C)."""
        root = "encoder.embed_images"
        x = F.max_pool2d(F.relu(self.conv(pixels, f"{root}.conv1", f"{root}.bn1", 2)), 3, 2, 1)
        for stage in range(1, 5):
            block = 0
            while f"{root}.layer{stage}.{block}.conv1.weight" in self.w:
                name, stride = f"{root}.layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                shortcut = x
                if f"{name}.downsample.0.weight" in self.w:
                    shortcut = self.conv(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
                x = F.relu(self.conv(x, f"{name}.conv1", f"{name}.bn1"))
                x = F.relu(self.conv(x, f"{name}.conv2", f"{name}.bn2", stride))
                x = F.relu(self.conv(x, f"{name}.conv3", f"{name}.bn3") + shortcut)
                block += 1
        return x.flatten(2).transpose(1, 2)

    # The Transformer (2.3, 2.4)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B H T K

    def positions_bias(self, query: Tensor, key: Tensor, q: str, k: str) -> Tensor:
        """Return the content-free logits (B, H, T, S)."""
        return (self.split(self.linear(query, q)) * self.scale) @ self.split(self.linear(key, k)).mT

    def text_relative(self, side: str, layer: int, length: int) -> Tensor:
        table = self.w[f"{side}.token_rel_pos_table_list.{layer}.weight"]
        return F.embedding(self.text_table[:length, :length], table).permute(2, 0, 1)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, name: str) -> Tensor:
        logits = (q * self.scale) @ k.mT + bias
        if mask is not None:
            logits = logits.masked_fill(mask, -torch.inf)
        out = torch.softmax(logits.float(), -1).type_as(q) @ v
        out = out * self.w[f"{name}.c_attn"][:, None, None]
        return self.linear(out.transpose(1, 2).flatten(2), f"{name}.out_proj")

    def feed_forward(self, x: Tensor, name: str) -> Tensor:
        hidden = F.gelu(self.linear(self.norm(x, f"{name}.final_layer_norm"), f"{name}.fc1"))
        return x + self.linear(self.norm(hidden, f"{name}.ffn_layernorm"), f"{name}.fc2")

    def encode(self, ids: Tensor, features: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        """Return the encoder's output, padding mask and position embeddings, a row each per row of `ids`."""
        w, length = self.w, ids.shape[1]
        types = w["encoder.type_embedding.weight"]
        text = self.norm(w["encoder.embed_tokens.weight"][ids] + types[0], "encoder.layernorm_embedding")
        media = self.linear(features, "encoder.image_proj") + types[1]
        x = torch.cat([self.norm(media, "encoder.patch_layernorm_embedding"), text], 1)
        num_media = media.shape[1]
        cells = positions.grid_ids(1, *grid, self.config.image_bucket_size)
        p_media = self.norm(w["encoder.embed_image_positions.weight"][cells], "encoder.image_pos_ln")
        p_text = self.norm(w["encoder.embed_positions.weight"][:length], "encoder.pos_ln")
        position = torch.cat([p_media, p_text]).expand(len(ids), -1, -1)
        padding = torch.cat([ids.new_zeros(len(ids), num_media, dtype=torch.bool), ids == self.config.pad_token_id], 1)
        mask = padding[:, None, None] if padding.any() else None
        absolute = self.positions_bias(position, position, "encoder.pos_q_linear", "encoder.pos_k_linear")
        for layer in range(self.config.encoder_layers):
            name = f"encoder.layers.{layer}"
            bias = absolute.clone()
            bias[:, :, num_media:, num_media:] += self.text_relative("encoder", layer, length)
            table = w[f"encoder.image_rel_pos_table_list.{layer}.weight"]
            image = F.embedding(self.image_table[cells][:, cells], table).permute(2, 0, 1)
            bias[:, :, :num_media, :num_media] += image
            h = self.norm(x, f"{name}.self_attn_layer_norm")
            q, k, v = (self.split(self.linear(h, f"{name}.self_attn.{p}_proj")) for p in "qkv")
            x = x + self.norm(self.attention(q, k, v, bias, mask, f"{name}.self_attn"), f"{name}.attn_ln")
            x = self.feed_forward(x, name)
        return {"memory": self.norm(x, "encoder.layer_norm"), "padding": padding, "position": position}

    def decode(self, prefix: Tensor, encoded: Mapping[str, Tensor], cache: Cache | None = None) -> Tensor:
        """Return logits (B, T, V) of a prefix (B, T); with a cache, of its last token only."""
        w, length = self.w, prefix.shape[1]
        last = slice(-1, None) if cache is not None else slice(None)
        x = self.norm(w["decoder.embed_tokens.weight"][prefix[:, last]], "decoder.layernorm_embedding")
        position = self.norm(w["decoder.embed_positions.weight"][:length], "decoder.pos_ln")
        position = position.expand(len(prefix), -1, -1)
        own = self.positions_bias(position, position, "decoder.self_pos_q_linear", "decoder.self_pos_k_linear")
        cross = self.positions_bias(
            position, encoded["position"], "decoder.cross_pos_q_linear", "decoder.cross_pos_k_linear"
        )
        future = torch.ones(length, length, dtype=torch.bool).triu(1)[last]
        padding = encoded["padding"][:, None, None] if encoded["padding"].any() else None
        for layer in range(self.config.decoder_layers):
            name = f"decoder.layers.{layer}"
            bias = (own + self.text_relative("decoder", layer, length))[:, :, last]
            h = self.norm(x, f"{name}.self_attn_layer_norm")
            q, k, v = (self.split(self.linear(h, f"{name}.self_attn.{p}_proj")) for p in "qkv")
            k, v = extended(cache, f"{layer}.key", k), extended(cache, f"{layer}.value", v)
            x = x + self.norm(self.attention(q, k, v, bias, future, f"{name}.self_attn"), f"{name}.self_attn_ln")
            h = self.norm(x, f"{name}.encoder_attn_layer_norm")
            k, v = (self.memory_projection(encoded, f"{name}.encoder_attn.{p}_proj", cache) for p in "kv")
            q = self.split(self.linear(h, f"{name}.encoder_attn.q_proj"))
            read = self.attention(q, k, v, cross[:, :, last], padding, f"{name}.encoder_attn")
            x = self.feed_forward(x + self.norm(read, f"{name}.cross_attn_ln"), name)
        return F.linear(self.norm(x, "decoder.layer_norm"), w["decoder.output_projection.weight"])

    def memory_projection(self, encoded: Mapping[str, Tensor], name: str, cache: Cache | None) -> Tensor:
        """Project the encoder's output, once per generation when there is a cache."""
        if cache is None:
            return self.split(self.linear(encoded["memory"], name))
        if name not in cache:
            cache[name] = self.split(self.linear(encoded["memory"], name))
        return cache[name]

    def forward(self, ids: Tensor, pixels: Tensor, prefix: Tensor) -> Tensor:
        """Return logits (B, T, V)."""
        grid = (pixels.shape[2] // 32, pixels.shape[3] // 32)
        return self.decode(prefix, self.encode(ids, self.backbone(pixels), grid))

    def beam_search(self, encoded: Mapping[str, Tensor], num_beams: int, length: int) -> Tensor:
        """Return the best continuation (B, length) of `<s>`; `</s>` is forbidden, so that all have this length."""
        rows = len(encoded["memory"])
        encoded = {name: value.repeat_interleave(num_beams, 0) for name, value in encoded.items()}
        tokens = torch.full((rows * num_beams, 1), self.config.bos_token_id)
        scores = torch.full((rows, num_beams), -torch.inf)
        scores[:, 0] = 0.0
        cache: Cache = {}
        for _ in range(length):
            log_probs = self.decode(tokens, encoded, cache)[:, -1].log_softmax(-1)
            log_probs[:, self.config.eos_token_id] = -torch.inf
            totals = (scores.flatten()[:, None] + log_probs).unflatten(0, (rows, num_beams)).flatten(1)
            scores, best = totals.topk(num_beams)
            vocabulary = log_probs.shape[1]
            source = (best // vocabulary + torch.arange(rows)[:, None] * num_beams).flatten()
            tokens = torch.cat([tokens[source], (best % vocabulary).flatten()[:, None]], 1)
            for name in cache:
                if name.endswith((".key", ".value")):  # cross-attention is the same for all beams of a row
                    cache[name] = cache[name][source]
        return tokens.unflatten(0, (rows, num_beams))[:, 0, 1:]


def extended(cache: Cache | None, name: str, new: Tensor) -> Tensor:
    """Append to what the cache holds."""
    if cache is None:
        return new
    cache[name] = torch.cat([cache[name], new], 2) if name in cache else new
    return cache[name]


def weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy a state dict, channels first; what is tied stays tied, what is trained is a leaf."""
    copies: dict[int, Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in copies:
            copy = tensor.detach().clone(memory_format=torch.contiguous_format)
            copies[id(tensor)] = copy.requires_grad_(tensor.requires_grad)
    return {name: copies[id(tensor)] for name, tensor in state.items()}
