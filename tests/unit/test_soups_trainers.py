"""Trainers of studies: GRPO of a tiny random language model; how it mixes and scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from preprocessing import debian_descriptions
from soups.errors import UserError
from soups.evaluators import causal_lm
from soups.merge import Recipe, merge
from soups.methods import get_method
from soups.state import open_checkpoint
from soups.trainers import entry, from_gguf, grpo
from unival.rewards.completions import reward

WORDS = ["<pad>", "<eos>", *["a", "the", "cat", "dog", "red", "blue", "runs", "sits", "and"]]
ROOT = Path(__file__).resolve().parents[2]
CATS = f"{__name__}:number_of_cats"


def number_of_cats(prompts: list[str], completions: list[str], word: str = "cat", **columns: Any) -> list[float]:
    return [float(text.split().count(word)) for text in completions]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A language model with tied embeddings, as SmolLM2 has them."""
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        tmp_path / "base"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    config = LlamaConfig(**sizes, **ids, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.5)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    prompts = [{"prompt": text, "source": text} for text in ("a cat", "the red dog and", "blue")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return tmp_path / "base"


def settings(base: Path, out: str = "out", **changes: Any) -> grpo.Settings:
    content = {
        "model": str(base),
        "out": str(base.parent / out),
        "prompts": str(base.parent / "prompts.jsonl"),
        "functions": {"cats": CATS},
        "rewards": {"cats": 1.0},
        "max_new_tokens": 6,
    }
    return grpo.Settings.model_validate(content | changes)


def opened(base: Path) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tokenizer


def drawn(base: Path, **changes: Any) -> tuple[Any, Any, grpo.Answers, grpo.Settings]:
    model, tokenizer = opened(base)
    chosen = settings(base, samples=8, **changes)
    torch.manual_seed(0)
    return model, tokenizer, grpo.sample(model, tokenizer, ["a cat", "the red dog and"], chosen), chosen


def test_answers_end_with_their_first_end_and_have_the_models_probabilities(base: Path) -> None:
    model, tokenizer, answers, chosen = drawn(base, temperature=0.7)
    assert answers.mask.shape == (16, 6)
    with torch.no_grad():
        found = grpo.log_probs(model, answers, chosen.temperature)
    lengths = set()
    for row in range(16):
        prompt = answers.ids[row, :-6][answers.attention[row, :-6] == 1]
        assert tokenizer.decode(prompt) == ["a cat", "the red dog and"][row // 8]
        own = answers.ids[row, -6:][answers.mask[row]]
        lengths.add(len(own))
        assert 1 not in own[:-1]
        assert len(own) == 6 or own[-1] == 1
        assert answers.texts[row] == tokenizer.decode(own, skip_special_tokens=True)
        with torch.no_grad():  # alone, without padding
            logits = model(torch.cat([prompt, own])[None]).logits[0, len(prompt) - 1 : -1] / chosen.temperature
        expected = logits.log_softmax(-1).gather(-1, own[:, None])[:, 0]
        torch.testing.assert_close(found[row][answers.mask[row]], expected, atol=1e-5, rtol=1e-4)
    assert len(lengths) > 1
    # The gradient too, though prompts are read once for all of their answers.
    weights = list(model.parameters())
    plain = model(
        input_ids=answers.ids, attention_mask=answers.attention, position_ids=grpo.positions(answers.attention)
    )
    expected = (
        (plain.logits[:, -7:-1] / chosen.temperature).log_softmax(-1).gather(-1, answers.ids[:, -6:, None])[..., 0]
    )
    for one, other in zip(
        torch.autograd.grad((expected * answers.mask).sum(), weights),
        torch.autograd.grad((grpo.log_probs(model, answers, chosen.temperature) * answers.mask).sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_prompts_of_one_token_have_answers(base: Path) -> None:
    model, tokenizer = opened(base)
    answers = grpo.sample(model, tokenizer, ["blue"], settings(base, samples=2))
    assert answers.ids.shape[1] == 1 + answers.mask.shape[1]
    assert grpo.log_probs(model, answers, 1.0).shape == answers.mask.shape


def test_the_first_update_follows_advantage_times_log_probability(base: Path) -> None:
    model, _, answers, chosen = drawn(base, max_grad_norm=1e9)
    weights = grpo.advantages(torch.arange(16.0).view(2, 8).square()).flatten()
    assert weights.view(2, 8).mean(1).abs().max() < 1e-5
    parameter = model.model.layers[0].self_attn.q_proj.weight
    log_probs = grpo.log_probs(model, answers, 1.0) * answers.mask
    expected = -(log_probs.sum(1) / answers.mask.sum(1) * weights).mean()
    (gradient,) = torch.autograd.grad(expected, parameter)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    before = parameter.detach().clone()
    grpo.update(model, optimizer, answers, weights, chosen)
    torch.testing.assert_close(before - parameter.detach(), gradient, atol=1e-6, rtol=1e-4)


def test_clipped_answers_are_not_pushed_further(base: Path) -> None:
    """The first update moves the only answer that counts past the clip; the second leaves everything as it is."""
    model, _, answers, chosen = drawn(base, updates=2, clip=1e-4, max_grad_norm=1e9, max_new_tokens=1)
    weights = torch.zeros(16)
    weights[0] = 1.0
    parameters = list(model.parameters())
    old = grpo.log_probs(model, answers, 1.0).detach()
    grpo.update(model, torch.optim.SGD(parameters, lr=0.1), answers, weights, chosen.model_copy(update={"updates": 1}))
    moved = grpo.log_probs(model, answers, 1.0).detach()
    assert (moved - old)[0, 0] > 1e-3  # the ratio is past 1 + clip
    once = [p.detach().clone() for p in parameters]
    model, _ = opened(base)
    grpo.update(model, torch.optim.SGD(list(model.parameters()), lr=0.1), answers, weights, chosen)
    for first, both in zip(once, model.parameters(), strict=True):
        torch.testing.assert_close(first, both.detach())


def test_every_prompt_comes_once_before_any_comes_again(base: Path) -> None:
    records = [{"prompt": str(number)} for number in range(5)]
    found = grpo.batches(records, settings(base, batch=2))
    order = [record["prompt"] for _ in range(5) for record in next(found)]
    assert sorted(order[:5]) == sorted(order[5:]) == ["0", "1", "2", "3", "4"]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers by an old name
def test_adapters_learn_their_reward_and_mix_as_differences_from_the_base(base: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra `adapters`")
    functions = {name: {"function": CATS, "args": {"word": name}} for name in ("cat", "dog")}
    common = {"functions": functions, "steps": 25, "batch": 3, "samples": 6, "lr": 0.02, "updates": 2, "kl": 0.01}
    for name in ("cat", "dog"):
        grpo.train(settings(base, name, rewards={name: 1.0}, **common))
        lines = [json.loads(line) for line in (base.parent / name / "log.jsonl").read_text().splitlines()]
        assert len(lines) == 25
        assert {"step", "reward", f"reward/{name}", "kl", "length", "seconds"} <= lines[0].keys()
        first, last = ([line["reward"] for line in part] for part in (lines[:5], lines[-5:]))
        assert np.mean(last) > np.mean(first) + 0.5
    paths = [base.parent / name / "adapter" for name in ("cat", "dog")]
    members = [open_checkpoint(path, path.parent.name) for path in paths]
    merge(Recipe(members, [0.5, 0.5], get_method("linear")), base.parent / "soup")
    soup, start = load_file(base.parent / "soup" / "model.safetensors"), load_file(base / "model.safetensors")
    from peft import PeftModel  # pyright: ignore[reportMissingImports]

    merged = [PeftModel.from_pretrained(opened(base)[0], path).merge_and_unload().state_dict() for path in paths]
    for name, tensor in soup.items():
        torch.testing.assert_close(tensor, (merged[0][name] + merged[1][name]) / 2, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(soup[name], start[name]) for name in soup)
    judge = causal_lm.evaluator(base.parent / "soup", str(base.parent / "prompts.jsonl"), functions, max_new_tokens=6)
    assert set(judge.evaluate()) == {"cat", "dog"}
    # The same settings again: nothing is done. Others in the same place: refused.
    assert entry.is_done(settings(base, "dog", rewards={"dog": 1.0}, **common))
    with pytest.raises(UserError, match="already there"):
        entry.is_done(settings(base, "dog", rewards={"dog": 2.0}, **common))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewards": {"cat": 1.0}}, "no reward is called 'cat'"),
        ({"functions": {"cats": {"function": "json:loads", "arg": {}}}}, "reward 'cats' is"),
        (
            {"functions": {"cats": {"function": CATS, "args": {"prompts": 1}}}},
            "multiple values",
        ),
        ({"prompts": "absent.jsonl"}, "cannot read the prompts"),
        ({"model": "absent"}, "no model in this folder|PEFT is not installed"),
    ],
)
def test_what_a_training_lacks_is_one_message(base: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        grpo.train(settings(base, **changes))
    assert not (base.parent / "out").exists()


def test_a_mistake_on_the_command_line_ends_with_code_2(base: Path) -> None:
    config = str(ROOT / "configs/soups/train/summary.yaml")
    command = [sys.executable, "-m", "soups.trainers.grpo", config, "model=absent", "rewards={similar: 1}"]
    done = subprocess.run([*command, f"out={base.parent / 'x'}", "stepz=3"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "stepz" in done.stderr
    assert "Traceback" not in done.stderr


def test_rewards_of_unival_answer_as_trl_asks() -> None:
    columns = {"source": ["a red dog", "a cat"], "captions": [None, ["a cat"]]}
    asked = {"prompts": ["what?", "who?"], "completions": ["one two three", "a cat"]}
    assert reward(**asked, name="brevity", params={"min_words": 2, "max_words": 4}, **columns) == [0.5, 1.0]
    assert reward(["who?"], ["a cat"], name="exact_match", captions=[["a cat"]]) == [1.0]
    with pytest.raises(ValueError, match="unknown reward 'brevty'"):
        reward(**asked, name="brevty")


def test_a_gguf_file_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert from_gguf.main(["absent.gguf", str(tmp_path / "out")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert from_gguf.main([]) == 2


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A llama of one layer with one quantised matrix; return what the matrices of its MLP stand for."""
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    rng, words = np.random.default_rng(0), ["<unk>", "<s>", "</s>", "a", "b", "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    shapes |= {"token_embd.weight": (len(words), 32), "output_norm.weight": (32,)}
    found = {}
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        if "ffn_up" in name:
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            values = gguf.quants.dequantize(packed, kind)
        else:
            writer.add_tensor(name, values)
        found[name.removeprefix("blk.0.").removesuffix(".weight")] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def test_a_gguf_file_becomes_a_folder_of_expanded_weights(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs the extra `adapters`")
    found = write_gguf(tmp_path / "tiny.gguf")
    assert from_gguf.main([str(tmp_path / "tiny.gguf"), str(tmp_path / "out")]) == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("ffn_up", "ffn_down"):
        key = f"model.layers.0.mlp.{name.removeprefix('ffn_')}_proj.weight"
        np.testing.assert_array_equal(weights[key].numpy(), found[name])
    model, tokenizer = opened(tmp_path / "out")
    assert model(**tokenizer("ab", return_tensors="pt", return_token_type_ids=False)).logits.shape[-1] == 6


TRANSLATION = """Package: gimp
Description-md5: 0
Description-en: GNU Image Manipulation Program
 GIMP lets you draw, paint, edit images, and much more with many words so that
 this description is as long as it has to be for a row, which needs thirty words.
 .
 Indeed it has more than that now.

Package: gimp-data
Description-en: Data files
 Too short.

Package: libgimp
Description-en: Libraries
 GIMP lets you draw, paint, edit images, and much more with many words so that
 this description is as long as it has to be for a row, which needs thirty words, libraries.
"""


def test_descriptions_become_prompts_that_are_split_by_the_family_of_their_name() -> None:
    rows = debian_descriptions.build([TRANSLATION], "{name}: {source}", share=0.0)
    (row,) = rows["train"]
    assert (row["package"], row["short"]) == ("gimp", "GNU Image Manipulation Program")
    assert row["source"].endswith("which needs thirty words. Indeed it has more than that now.")
    assert row["prompt"] == f"gimp: {row['source']}"
    assert row["question"] == "what is gimp?"
    assert [other["package"] for other in rows["other"]] == ["libgimp"]
    families = {debian_descriptions.split_of(name, 0.5) for name in ("foo", "foo-data", "foo-doc")}
    assert len(families) == 1
    assert {debian_descriptions.split_of(str(n), 0.5) for n in range(20)} == {"train", "test"}


def test_packed_descriptions_are_one_message(tmp_path: Path) -> None:
    """The lists of apt are packed on some machines."""
    (tmp_path / "a_Translation-en.lz4").write_bytes(b"\x04\x22\x4d\x18\xff")
    for name in ("a_Translation-en.lz4", "absent"):
        command = [sys.executable, "-m", "preprocessing.debian_descriptions", str(tmp_path / "out"), "--source"]
        done = subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        assert "apt-helper cat-file" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
