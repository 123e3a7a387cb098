"""LoRA adapters in the folders of PEFT: what they change in their base, computed when a tensor is asked for.

An adapter stores, per layer, ``base_model.model.LAYER.lora_A.weight`` (rank, in) and ``...lora_B.weight`` (out, rank);
it stands for the update ``scale * B @ A`` of the layer's weight (Hu et al. 2022, arXiv:2106.09685), with ``scale`` =
alpha / rank, or alpha / sqrt(rank) when rank-stabilised (arXiv:2312.03732). Two adapters are mixed exactly by
mixing their updates; the mean of their factors is something else, because the update is a product.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soups.errors import UserError
from soups.sources.config import OUTPUT
from soups.sources.info import TensorInfo, corrupt
from soups.sources.safetensors_file import read_safetensors
from soups.sources.torch_file import read_torch_file

if TYPE_CHECKING:
    import torch

CONFIG_NAME = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
ROLES = re.compile(r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?$")
# Variants that mean something else by the same two factors. What cannot be merged right is refused.
UNSUPPORTED = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "megatron_config"),
    *("monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora"),
)
# Initialisations that also change the weights of the base: such an adapter does not fit the base on disk.
MOVES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga", "mica")
# The heads that PEFT saves whole for a task, also where `modules_to_save` does not name them.
TASK_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
# What every model of transformers calls its Conv1D layers, stored as (in, out); some have linear layers of these names.
CONV1D = ("c_attn", "c_fc", "c_proj", "q_attn")
MAX_LISTED = 5
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Update:
    """What an adapter does to one weight.

    Attributes:
        a: the stored name of the factor A: (rank, in), (rank, in, height, width) or, of an embedding, (rank, rows).
        b: the stored name of the factor B: (out, rank), (out, rank, 1, 1) or (width, rank).
        scale: what ``B @ A`` is multiplied by.
        is_transposed: whether the weight is stored as (in, out): embeddings, and the Conv1D layers of GPT-2.
        magnitude: for DoRA (arXiv:2402.09353), the stored name of the norms of the output rows.
    """

    a: str
    b: str
    scale: float
    is_transposed: bool = False
    magnitude: str | None = None

    @property
    def is_embedding(self) -> bool:
        """Say whether the layer is an embedding: its factors have a role of their own, whatever the layer is called."""
        return ".lora_embedding_A" in self.a

    def apply(self, weight: torch.Tensor, factor: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Return the updated weight, computed in float64 and rounded once, to float32 or to a wider stored dtype."""
        import torch

        left, right = factor(self.b).double(), factor(self.a).double()
        left, right = left.reshape(left.shape[0], -1), right.reshape(right.shape[0], -1)
        if self.is_transposed:
            left, right = right.t(), left.t()
        flat = weight.reshape(weight.shape[0], -1)
        result = torch.empty(flat.shape, dtype=torch.promote_types(weight.dtype, torch.float32))
        norms = None if self.magnitude is None else self._row_norms(flat, left, right)
        for start in range(0, len(flat), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            block = flat[rows].double() + left[rows] @ right * self.scale
            if norms is not None and self.magnitude is not None:
                factors = factor(self.magnitude).double().reshape(-1) / norms
                block *= factors if self.is_transposed else factors[rows, None]
            result[rows] = block
        return result.reshape(weight.shape)

    def _row_norms(self, flat: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return the norm of each output row of the weight with its update."""
        import torch

        squares = []
        for start in range(0, len(flat), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            block = (flat[rows].double() + left[rows] @ right * self.scale).square()
            squares.append(block.sum(dim=0) if self.is_transposed else block.sum(dim=1))
        return (sum(squares[1:], squares[0]) if self.is_transposed else torch.cat(squares)).sqrt()


@dataclass(frozen=True)
class Adapter:
    """A PEFT folder: its settings, the headers of its tensors, and which of them belong together."""

    path: Path
    config: Mapping[str, Any]
    factors: Mapping[str, TensorInfo]

    @cached_property
    def layers(self) -> dict[str, Update]:
        """Return the update of each layer, by the layer's name; not yet fitted to the shape of a base."""
        found: dict[str, dict[str, str]] = {}
        for name in self.factors:
            if role := ROLES.search(name):
                layer = name[: role.start()].removeprefix(PREFIX)
                found.setdefault(layer, {})[role[1].removeprefix("lora_").removeprefix("embedding_")] = name
        for layer, parts in found.items():
            if not {"A", "B"} <= set(parts):
                raise corrupt(self.path, f"{layer!r} has only {', '.join(parts)}")
            if self.config.get("use_dora") and "magnitude_vector" not in parts:
                raise corrupt(self.path, f"a DoRA (use_dora), and {layer!r} has no magnitude vector")
        return {
            layer: Update(
                parts["A"], parts["B"], self._scale(layer, parts["A"]), magnitude=parts.get("magnitude_vector")
            )
            for layer, parts in sorted(found.items())
        }

    @cached_property
    def replacements(self) -> dict[str, str]:
        """Return the tensors stored whole, such as biases and new heads: from the name in the base to the stored."""
        return {
            name.removeprefix(PREFIX).replace(".base_layer.", "."): name
            for name in self.factors
            if not ROLES.search(name)
        }

    @property
    def changed(self) -> set[str]:
        """Return the names of the tensors that differ from the base."""
        return {f"{layer}.weight" for layer in self.layers} | set(self.replacements)

    @property
    def base_path(self) -> Path:
        """Return the folder of the base that the configuration names.

        Raises:
            UserError: it is not on this machine.
        """
        named = str(self.config.get("base_model_name_or_path") or "")
        if not named or not Path(named).exists():
            raise UserError(
                f"the base of this adapter, {named or 'not named'!r}, is not here",
                where=str(self.path),
                fix="give its folder: --base DIR; or merge the adapters alone: --lora-mode cat",
            )
        return Path(named)

    def over(self, base: Mapping[str, TensorInfo]) -> tuple[dict[str, TensorInfo], dict[str, Update], list[str]]:
        """Return the headers of the base with this adapter, the updates of weights, and the tensors new to the base.

        Raises:
            UserError: the adapter changes what the base does not have, or in another shape.
        """
        changed = self.changed
        whole = {name for name, stored in self.replacements.items() if self._may_be_new(name, stored)}
        prefix = _prefix(changed - whole or changed, base)
        infos = {prefix + name: info for name, info in base.items()}
        # Not a single name of the base: another base, whatever the adapter brings.
        missing = sorted(changed - set(infos) - (whole if changed & set(infos) else set()))
        if missing:
            more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
            raise UserError(
                f"the base has no {', '.join(missing[:MAX_LISTED])}{more}",
                where=str(self.path),
                fix="give the base that this adapter was trained on: --base DIR; where transformers renames layers as "
                "it loads them (ViT), merge each adapter with PEFT's merge_and_unload() first",
            )
        new = sorted(changed - set(infos))
        infos |= {name: self.factors[stored] for name, stored in self.replacements.items()}
        updates = {f"{layer}.weight": update for layer, update in self._fitted(infos).items()}
        # A new head makes it the whole model, where all names have the prefix; else it stays what the base is.
        cut = 0 if new else len(prefix)
        infos = {name[cut:]: info for name, info in sorted(infos.items())}
        return infos, {name[cut:]: update for name, update in updates.items()}, new

    def _may_be_new(self, name: str, stored: str) -> bool:
        """Say whether the base may lack a tensor: the adapter has it whole, and it is no name by mistake."""
        modules = (*(self.config.get("modules_to_save") or ()), *TASK_HEADS.get(str(self.config.get("task_type")), ()))
        is_saved = any(f".{module}." in f".{name}" for module in modules)
        # PEFT adds these by itself where the vocabulary has grown or the embedding is trained.
        return is_saved or ".base_layer." in stored or OUTPUT.fullmatch(name) is not None

    def _scale(self, layer: str, a: str) -> float:
        patterns = self.config.get("alpha_pattern") or {}
        own = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
        alpha = float(next(own, self.config.get("lora_alpha", 8)))
        rank = self.factors[a].shape[0]
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _fitted(self, infos: Mapping[str, TensorInfo]) -> dict[str, Update]:
        """Return the update of each layer as its weight is stored; only a square weight leaves a choice."""
        fits = {layer: self._fits(layer, update, infos[f"{layer}.weight"]) for layer, update in self.layers.items()}
        certain = {layer: True in ways for layer, ways in fits.items() if len(ways) == 1}
        known = _known_by_bias(infos)
        known |= {layer: way for layer, way in certain.items() if not self.layers[layer].is_embedding}
        chosen = {layer: self._chosen(layer, known) for layer in fits if layer not in certain}
        ways = certain | chosen
        return {layer: replace(update, is_transposed=ways[layer]) for layer, update in self.layers.items()}

    def _fits(self, layer: str, update: Update, weight: TensorInfo) -> set[bool]:
        """Return whether the weight must be transposed for the update to fit: one answer, or both."""
        a, b = self.factors[update.a].shape, self.factors[update.b].shape
        update_shape, rows = (b[0], *a[1:]), (weight.shape[0], math.prod(weight.shape[1:]))
        flat = (b[0], math.prod(a[1:]))
        fits = {False: flat == rows and update_shape == weight.shape, True: flat[::-1] == rows and len(a) == 2}
        if update.is_embedding:
            fits[False] = False
        if a[0] != b[1] or math.prod(b[2:]) != 1 or not weight.is_float or not any(fits.values()):
            raise UserError(
                f"the update of {layer!r} is {list(update_shape)}, its weight {weight}",
                where=str(self.path),
                fix="give the base that this adapter was trained on: --base DIR",
            )
        if update.magnitude and (len(a) != 2 or update.is_embedding):
            raise UserError(
                f"{layer!r} is no linear layer, and its adapter is a DoRA",
                where=str(self.path),
                fix="merge it into its base with PEFT: merge_and_unload()",
            )
        return {way for way, is_possible in fits.items() if is_possible}

    def _chosen(self, layer: str, known: Mapping[str, bool]) -> bool:
        """Say whether a square weight is transposed, from the layers of its name, then from those of its kind.

        PEFT writes ``fan_in_fan_out`` of the layer that it changed last, and corrects it for every layer as it loads
        them. It counts only where no layer of the adapter shows its own side, which explains or refutes it.
        """
        name, flag = _last(layer), bool(self.config.get("fan_in_fan_out"))
        namesakes = {way for other, way in known.items() if _last(other) == name}
        if len(namesakes) == 1:
            return namesakes.pop()
        alike = {way for other, way in known.items() if (_last(other) in CONV1D) == (name in CONV1D)}
        if not set(self.layers) & set(known):
            alike.add(flag)
        if len(alike) > 1:
            raise UserError(
                f"{layer!r} is square, and other layers and fan_in_fan_out do not agree whether it is transposed",
                where=str(self.path),
                fix="merge it into its base with PEFT: merge_and_unload()",
            )
        return alike.pop() if alike else flag


def _last(layer: str) -> str:
    return layer.rpartition(".")[2]


def _known_by_bias(infos: Mapping[str, TensorInfo]) -> dict[str, bool]:
    """Return the layers whose bias shows which side of the weight is the output, and whether it is the second."""
    found = {}
    for name, info in infos.items():
        layer, _, kind = name.rpartition(".")
        bias = infos.get(f"{layer}.bias")
        if kind == "weight" and bias and len(set(info.shape)) == len(info.shape) == 2:
            sides = [bias.shape == (side,) for side in info.shape]
            if any(sides):
                found[layer] = sides[1]
    return found


def _prefix(names: Set[str], base: Mapping[str, TensorInfo]) -> str:
    """Return what the names of an adapter have before those of its base, such as ``bert.``; mostly nothing.

    Heads are often saved with their model as a part (``bert.encoder...``), and bases without (``encoder...``).
    """
    first, *others = {name.partition(".")[0] + "." for name in names} or {""}
    is_cut = not others and not names <= set(base) and {name.removeprefix(first) for name in names} <= set(base)
    return first if is_cut else ""


def is_adapter(path: Path) -> bool:
    """Say whether this is a PEFT folder."""
    return (path / CONFIG_NAME).is_file()


def read_adapter(path: Path) -> Adapter:
    """Read the settings and the headers of a PEFT folder.

    Raises:
        UserError: no LoRA, a variant that is not supported, or a truncated, corrupt or unsafe file.
    """
    if not is_adapter(path):
        raise UserError(f"no {CONFIG_NAME} in this folder", where=str(path), fix="give the folder of a LoRA adapter")
    try:
        config = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
        kind = config["peft_type"]
        start = str(config.get("init_lora_weights")).lower()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt(path / CONFIG_NAME, "no readable configuration of an adapter") from error
    problems = [key for key in UNSUPPORTED if config.get(key)]
    if kind != "LORA":
        problems = [f"peft_type {kind}"]
    if start.startswith(MOVES_BASE):
        problems.append(f"init_lora_weights {start}, which changes the base")
    if problems:
        raise UserError(
            f"this adapter cannot be merged here: {', '.join(problems)}",
            where=str(path),
            fix="merge it into its base with PEFT: merge_and_unload()",
        )
    for name in ADAPTER_FILES:
        if (path / name).is_file():
            read = read_safetensors if name.endswith(".safetensors") else read_torch_file
            return Adapter(path, config, read(path / name))
    raise UserError(f"no {' and no '.join(ADAPTER_FILES)} in this folder", where=str(path), fix="copy the file")
