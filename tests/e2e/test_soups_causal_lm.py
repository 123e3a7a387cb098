"""Language models whose tensors have other names in memory than in their files are swept by way of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedTokenizerFast
from typer.testing import CliRunner

from soups.cli import app
from soups.engine.live import check_live
from soups.errors import UserError
from soups.results import read_results
from soups.state import open_checkpoint

ME = __name__
WORDS = ["<pad>", "<eos>", *"abcdefg"]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
CONFIGS = {
    "mixtral": MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=2, initializer_range=0.5),
    "llama": LlamaConfig(**SIZES, initializer_range=0.5),
}


def words(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(WORDS.index(word) for word in text.split())) for text in completions]


def soups(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout if code == 0 else result.stderr


def sweep(folder: Path, *paths: Path, code: int = 0) -> str:
    (folder / "prompts.txt").write_text("a b\nc\ng f e\n")
    args = {"prompts": folder / "prompts.txt", "rewards": f"{ME}:words", "max_new_tokens": 5, "device": "cpu"}
    given = [word for key, value in args.items() for word in ("--arg", f"{key}={value}")]
    evaluator = ("--evaluator", "soups.evaluators.causal_lm:evaluator", *given)
    return soups("sweep", *paths, *evaluator, "--points", 3, "-o", folder / "s", code=code)


def save_models(folder: Path, kind: str) -> list[Path]:
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(folder / name)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>")
        tokenizer.save_pretrained(folder / name)
    return [folder / "a", folder / "b"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_point_is_scored_as_what_merge_writes(tmp_path, kind):
    paths = save_models(tmp_path, kind)
    sweep(tmp_path, *paths)
    results = read_results(tmp_path / "s")
    assert len({tuple(sample["output"] for sample in result.samples) for result in results}) == 3
    for number, result in enumerate(results):
        weights = ",".join(map(str, result.coefficients.values()))
        soups("merge", *paths, "--weights", weights, "-o", tmp_path / f"soup{number}")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"soup{number}")
        for sample in result.samples:
            ids = torch.tensor([[WORDS.index(word) for word in sample["prompt"].split()]])
            found = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
            assert " ".join(WORDS[i] for i in found if i > 1) == sample["output"]
    assert not list((tmp_path / "s").glob(".soup-*"))


def test_a_model_that_is_not_whole_is_named_and_not_filled_with_random_numbers(tmp_path):
    paths = save_models(tmp_path, "llama")
    for path in paths:
        stored = load_file(path / "model.safetensors")
        del stored["lm_head.weight"]
        save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    assert "lacks tensors of LlamaForCausalLM: lm_head.weight" in sweep(tmp_path, *paths, code=2)


def test_a_live_model_with_other_names_is_told_to_score_files(tmp_path):
    path = save_models(tmp_path, "mixtral")[0]
    live = AutoModelForCausalLM.from_pretrained(path).state_dict()
    with safe_open(path / "model.safetensors", "pt") as file:
        assert any("experts.0.w1" in name for name in file.keys())  # noqa: SIM118 - it is no mapping
    with pytest.raises(UserError, match=r"not in the live model: .*experts\.0\.w1") as caught:
        check_live(open_checkpoint(path).infos, live, "mine:evaluator")
    assert "score files: --command, or soups.evaluators.function:of_file" in str(caught.value.fix)
