"""The same files and the same recipe, merged by mergekit 0.1.5 and here.

Runs where mergekit can be imported, or with SOUPS_MERGEKIT = the python of an environment that has it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from soups.merge import merge
from soups.recipes.file import load_recipe
from soups.state import open_checkpoint

PYTHON = os.environ.get("SOUPS_MERGEKIT") or (sys.executable if importlib.util.find_spec("mergekit") else None)
pytestmark = pytest.mark.skipif(PYTHON is None, reason="mergekit is not installed and SOUPS_MERGEKIT is not set")

SHAPES = {
    "embed.weight": (20, 8),
    "layers.0.attn.weight": (8, 8),
    "layers.1.mlp.weight": (16, 8),
    "layers.1.mlp.bias": (16,),
}
# Each call of mergekit's program costs seconds of imports: all recipes in one process.
PROGRAM = """
import sys
from mergekit.scripts.merge_raw_pytorch import main
for recipe in sys.argv[1:]:
    main.main(args=[recipe, recipe.removesuffix(".yaml")], standalone_mode=False)
"""


def recipes(folder):
    """Return the recipes by name; `weights` per model, or for slerp the position."""
    a, b, c, base = (str(folder / f"{name}.safetensors") for name in ("a", "b", "c", "base"))

    def mixture(method, weights, base_model=None, **parameters):
        models = [{"model": m, "parameters": {"weight": w}} for m, w in zip((a, b, c), weights, strict=False)]
        recipe = {"merge_method": method, "models": models, "parameters": parameters, "dtype": "float32"}
        return recipe | ({"base_model": base_model} if base_model else {})

    def slerp(t):
        models = [{"model": a}, {"model": b}]
        return {"merge_method": "slerp", "base_model": a, "models": models, "parameters": {"t": t}, "dtype": "float32"}

    by_name = [{"filter": "attn", "value": 0.2}, {"filter": "mlp.weight", "value": 0.9}, {"value": 0.5}]
    return {
        "linear": mixture("linear", (0.3, 0.7)),
        "linear_of_three_normalised": mixture("linear", (1, 2, 3)),
        "linear_not_normalised": mixture("linear", (1.5, -0.75), normalize=False),
        "slerp": slerp(0.3),
        "slerp_by_name": slerp(by_name),
        "task_arithmetic": mixture("task_arithmetic", (0.4, 0.5, 0.6), base),
        "task_arithmetic_scaled": mixture("task_arithmetic", (1, -0.5), base, **{"lambda": 0.7}),
        "task_arithmetic_normalised": mixture("task_arithmetic", (1, 3), base, normalize=True),
        "ties": mixture("ties", (0.5, 0.5), base, density=0.3),
        "ties_of_three": mixture("ties", (0.2, 0.5, 1.3), base, density=0.55, int8_mask=True, **{"lambda": 0.8}),
        "ties_not_normalised": mixture("ties", (0.6, 0.7), base, density=0.4, normalize=False),
        "ties_dense": mixture("ties", (0.5, 0.5), base),
        "breadcrumbs": mixture("breadcrumbs", (0.5, 0.7), base, density=0.6, gamma=0.1),
        "breadcrumbs_ties": mixture("breadcrumbs_ties", (0.5, 0.7), base, density=0.6, gamma=0.1),
        "dare_dense": mixture("dare_ties", (0.5, 0.7), base),
        "dare_linear_normalised": mixture("dare_linear", (0.5, 0.7), base, normalize=True),
        "della_dense": mixture("della", (0.5, 0.7), base),
        "della_dense_negative": mixture("della", (1.5, -0.4, 0.3), base, normalize=True, **{"lambda": 0.8}),
        "della_dense_not_normalised": mixture("della", (0.5, 0.7), base, normalize=False),
        "della_linear_dense": mixture("della_linear", (0.5, 0.7), base),
        "della_linear_normalised": mixture("della_linear", (0.5, 0.7), base, normalize=True),
        "breadcrumbs_normalised": mixture("breadcrumbs", (0.5, 0.7), base, density=0.6, gamma=0.1, normalize=True),
        "model_stock": {
            "merge_method": "model_stock",
            "base_model": base,
            "models": [{"model": a}, {"model": b}, {"model": c}],
            "dtype": "float32",
        },
    }


def finetuned(start: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """What training away from `start` could have given; all go one way: negative cosines count for zero here only."""
    noise = {name: torch.randn(value.shape, generator=generator) for name, value in start.items()}
    return {name: value + 0.3 * (1 + noise[name]) for name, value in start.items()}


@pytest.fixture(scope="module")
def merged_by_mergekit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mergekit")
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    save_file(base, folder / "base.safetensors")
    for name in "abc":
        save_file(finetuned(base, generator), folder / f"{name}.safetensors")
    paths = []
    for name, recipe in recipes(folder).items():
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(recipe))
    run(PROGRAM, list(map(str, paths)))
    return folder


def run(program, recipes):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [str(PYTHON), "-c", program, *recipes]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", list(recipes(Path())))
def test_the_result_is_that_of_mergekit(merged_by_mergekit, tmp_path, name):
    compare(merged_by_mergekit / name, tmp_path, SHAPES)


def compare(folder, tmp_path, shapes):
    """Merge the recipe beside a folder of mergekit's; both sum in float32 or wider and store float32."""
    expected = {}
    for file in folder.glob("*.safetensors"):
        expected |= load_file(file)
    merge(load_recipe(folder.with_suffix(".yaml")), tmp_path / "out")
    result = open_checkpoint(tmp_path / "out").load()
    assert result.keys() == expected.keys() == shapes.keys()
    for key, tensor in expected.items():  # entries are of size 1
        torch.testing.assert_close(
            result[key], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


# A whole model, whose architecture mergekit knows: lists over its layers, and slices.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 20,
    "tie_word_embeddings": False,
}
PARTS = {
    **{f"self_attn.{name}_proj": (8, 8) for name in "qkvo"},
    "mlp.gate_proj": (12, 8),
    "mlp.up_proj": (12, 8),
    "mlp.down_proj": (8, 12),
    "input_layernorm": (8,),
    "post_attention_layernorm": (8,),
}
LLAMA_SHAPES = {
    "model.embed_tokens.weight": (20, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (20, 8),
    **{f"model.layers.{layer}.{part}.weight": shape for layer in range(4) for part, shape in PARTS.items()},
}
WHOLE_PROGRAM = """
import sys
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for recipe in sys.argv[1:]:
    config = MergeConfiguration.model_validate(yaml.safe_load(open(recipe)))
    run_merge(config, recipe.removesuffix(".yaml"), MergeOptions(copy_tokenizer=False, lazy_unpickle=True))
"""


def whole_recipes(folder):
    a, b, base = (str(folder / name) for name in ("a", "b", "base"))
    sources = [{"model": model, "layer_range": [0, 4]} for model in (a, b)]
    t = [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"filter": "mlp", "value": [1, 0.1]}, {"value": 0.4}]
    models = [{"model": a, "parameters": {"weight": [0.2, 0.9, 0.4]}}, {"model": b, "parameters": {"weight": 0.5}}]
    return {
        "slerp_slice": {
            "merge_method": "slerp",
            "base_model": a,
            "slices": [{"sources": sources}],
            "parameters": {"t": t},
            "dtype": "float32",
        },
        "linear_list": {"merge_method": "linear", "models": models, "dtype": "float32"},
        "task_list": {"merge_method": "task_arithmetic", "base_model": base, "models": models, "dtype": "float32"},
        "ties_list": {
            "merge_method": "ties",
            "base_model": base,
            "models": models,
            "parameters": {"density": 0.5},
            "dtype": "float32",
        },
    }


@pytest.fixture(scope="module")
def whole_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    generator = torch.Generator().manual_seed(1)
    start = {name: torch.randn(shape, generator=generator) for name, shape in LLAMA_SHAPES.items()}
    for name in ("base", "a", "b"):
        (folder / name).mkdir()
        weights = start if name == "base" else finetuned(start, generator)
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(LLAMA))
    for name, recipe in whole_recipes(folder).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    run(WHOLE_PROGRAM, [str(folder / f"{name}.yaml") for name in whole_recipes(folder)])
    return folder


@pytest.mark.parametrize("name", list(whole_recipes(Path())))
def test_lists_over_layers_are_those_of_mergekit(whole_models, tmp_path, name):
    compare(whole_models / name, tmp_path, LLAMA_SHAPES)
