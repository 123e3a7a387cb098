"""Embeddings that are the output layer too, in adapters and between formats; vocabularies that have grown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from soups.adapters import merge_adapters
from soups.errors import UserError
from soups.merge import Recipe, merge
from soups.methods import get_method
from soups.recipes.policies import Policies
from soups.state import Checkpoint, open_checkpoint

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CONFIG = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "vocab_size": 10}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def save_base(folder: Path, config: object = CONFIG, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Save a language model whose output layer is its embedding, which transformers stores once."""
    tensors = {EMBED: draw(1, 10, 4), "model.q.weight": draw(2, 4, 4)} | more
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text("of the base")
    return tensors


def save_adapter(folder: Path, seed: int, stored: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir()
    low = {"model.q.lora_A.weight": draw(seed, 2, 4), "model.q.lora_B.weight": draw(seed + 1, 4, 2)} | stored
    save_file({f"base_model.model.{n}": t for n, t in low.items()}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(folder.parent / "base")}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def merged(checkpoints: list[Checkpoint], out: Path, method: str = "linear", **more: object) -> dict[str, torch.Tensor]:
    merge(Recipe(checkpoints, (0.25, 0.75), get_method(method), **more), out)
    return load_file(out / "model.safetensors")


def mean(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    return (0.25 * one.double() + 0.75 * two.double()).to(one.dtype)


def config_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("rows", [10, 12])
def test_an_embedding_that_an_adapter_stores_twice_stays_tied(tmp_path, rows):
    save_base(tmp_path / "base")
    tables = [draw(seed, rows, 4) for seed in (20, 30)]
    paths = [
        save_adapter(tmp_path / name, seed, {EMBED: table, HEAD: table.clone()}, modules_to_save=["embed_tokens"])
        for seed, (name, table) in enumerate(zip("ab", tables, strict=True))
    ]
    found = merged([open_checkpoint(path) for path in paths], tmp_path / "out")
    assert torch.equal(found[EMBED], found[HEAD])
    torch.testing.assert_close(found[EMBED], mean(*tables), rtol=1e-6, atol=1e-6)
    assert config_of(tmp_path / "out") == CONFIG | {"vocab_size": rows}


@pytest.mark.parametrize("stored", [(EMBED, HEAD), (HEAD,)])
@pytest.mark.parametrize("config", [CONFIG, {key: CONFIG[key] for key in ("architectures", "vocab_size")}])
def test_an_output_layer_that_an_adapter_trained_is_no_longer_tied(tmp_path, stored, config):
    base = save_base(tmp_path / "base", config)
    adapters = [{name: draw(10 * seed + len(name), 10, 4) for name in stored} for seed in (2, 3)]
    paths = [save_adapter(tmp_path / "ab"[i], i, each, modules_to_save=["lm_head"]) for i, each in enumerate(adapters)]
    found = merged([open_checkpoint(path) for path in paths], tmp_path / "out")
    for name in (EMBED, HEAD):
        expected = mean(*(each.get(name, base.get(name)) for each in adapters))
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-6)
    assert config_of(tmp_path / "out") == config | {"tie_word_embeddings": False}


@pytest.mark.parametrize("is_update", [False, True])
def test_an_embedding_that_was_trained_without_its_output_layer_asks_for_an_untied_base(tmp_path, is_update):
    base = save_base(tmp_path / "base")
    factors = {
        "model.embed_tokens.lora_embedding_A": draw(5, 2, 10),
        "model.embed_tokens.lora_embedding_B": draw(6, 4, 2),
    }
    path = save_adapter(tmp_path / "a", 1, factors if is_update else {EMBED: draw(5, 10, 4)})
    with pytest.raises(UserError, match="is the output layer of the base too, and was trained as the embedding alone"):
        open_checkpoint(path)
    save_base(tmp_path / "untied", CONFIG | {"tie_word_embeddings": False}, **{HEAD: base[EMBED].clone()})
    found = open_checkpoint(path, adapter_base=open_checkpoint(tmp_path / "untied")).load()
    assert torch.equal(found[HEAD], base[EMBED])
    update = (factors["model.embed_tokens.lora_embedding_B"] @ factors["model.embed_tokens.lora_embedding_A"]).t()
    expected = base[EMBED] + update if is_update else draw(5, 10, 4)
    torch.testing.assert_close(found[EMBED], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stored", [{}, {EMBED: draw(5, 10, 4)}], ids=["tied", "untied"])
def test_a_base_that_stores_both_names_holds_what_either_becomes(tmp_path, stored):
    base = save_base(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.save(base | {HEAD: base[EMBED]}, tmp_path / "base" / "pytorch_model.bin")
    found = merged([open_checkpoint(save_adapter(tmp_path / name, 1, stored)) for name in "ab"], tmp_path / "out")
    assert torch.equal(found[HEAD], base[EMBED])
    assert torch.equal(found[EMBED], stored.get(EMBED, base[EMBED]))
    assert config_of(tmp_path / "out") == CONFIG | {"tie_word_embeddings": not stored}


def test_an_encoder_has_no_output_layer_that_its_embedding_could_be(tmp_path):
    save_base(tmp_path / "base", CONFIG | {"architectures": ["BertModel"]})
    path = save_adapter(tmp_path / "a", 1, {EMBED: draw(5, 10, 4)})
    assert torch.equal(open_checkpoint(path).load()[EMBED], draw(5, 10, 4))


def test_a_vocabulary_that_has_grown_is_in_the_configuration_and_the_tokenizer(tmp_path):
    config = {"text_config": {"vocab_size": 10, "size": 10}, "vision": {"size": 3}}
    save_base(tmp_path / "base", config, **{HEAD: draw(3, 10, 4)})
    paths = [save_adapter(tmp_path / name, 1, {EMBED: draw(5, 12, 4), HEAD: draw(6, 12, 4)}) for name in "ab"]
    for path in paths:
        (path / "tokenizer.json").write_text(f"of {path.name}")
        (path / "config.json").write_text("of a quantised base")
    merged([open_checkpoint(path) for path in paths], tmp_path / "out")
    assert config_of(tmp_path / "out") == config | {"text_config": {"vocab_size": 12, "size": 10}}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "of a"
    merge_adapters(paths, ["a", "b"], (0.5, 0.5), "cat", tmp_path / "cat")
    assert (tmp_path / "cat" / "tokenizer.json").read_text() == "of a"
    assert not (tmp_path / "cat" / "config.json").exists()


def test_a_configuration_that_fits_is_copied_byte_for_byte(tmp_path):
    save_base(tmp_path / "base")
    merged([open_checkpoint(save_adapter(tmp_path / name, 1, {})) for name in "ab"], tmp_path / "out")
    files = [(tmp_path / name / "config.json").read_bytes() for name in ("base", "out")]
    assert files[0] == files[1]
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "of the base"


def two_formats(tmp_path: Path, form: str) -> tuple[Checkpoint, Checkpoint]:
    """Save a tied model with both names, and one with the embedding alone."""
    table = draw(1, 10, 4)
    if form == "torch":
        torch.save({EMBED: table, HEAD: table}, tmp_path / "a.pt")
    else:
        save_file({EMBED: table, HEAD: table.clone()}, tmp_path / "a.safetensors")
    save_file({EMBED: draw(2, 10, 4)}, tmp_path / "b.safetensors")
    return open_checkpoint(tmp_path / ("a.pt" if form == "torch" else "a.safetensors")), open_checkpoint(
        tmp_path / "b.safetensors"
    )


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("keys", ["error", "owners", "common"])
def test_a_tied_tensor_that_one_format_stores_twice_is_one_tensor(tmp_path, form, keys):
    a, b = two_formats(tmp_path, form)
    for number, models in enumerate(([a, b], [b, a])):
        found = merged(models, tmp_path / f"out{number}", policies=Policies(keys=keys))
        assert set(found) == {EMBED}
        expected = mean(*(model.load()[EMBED] for model in models))
        torch.testing.assert_close(found[EMBED], expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError, match=f"'{HEAD}' is missing in|does not match"):  # as a person has said
        Recipe([a, b], (0.5, 0.5), get_method("linear"), policies=Policies(untied=[[EMBED, HEAD]])).check()


def test_a_base_may_store_a_tied_tensor_once(tmp_path):
    for seed, name in enumerate("ab"):
        table = draw(seed, 10, 4)
        torch.save({EMBED: table, HEAD: table}, tmp_path / f"{name}.pt")
    save_file({EMBED: draw(2, 10, 4)}, tmp_path / "base.safetensors")
    a, b, base = (open_checkpoint(tmp_path / name) for name in ("a.pt", "b.pt", "base.safetensors"))
    found = merged([a, b], tmp_path / "out", "task_arithmetic", base=base)
    assert set(found) == {EMBED}
    updates = [model.load()[EMBED].double() - base.load()[EMBED].double() for model in (a, b)]
    expected = base.load()[EMBED].double() + 0.25 * updates[0] + 0.75 * updates[1]
    torch.testing.assert_close(found[EMBED].double(), expected, rtol=1e-6, atol=1e-6)


def test_owners_are_not_advised_for_an_output_layer_that_may_be_tied_elsewhere(tmp_path):
    save_file({EMBED: draw(1, 10, 4), HEAD: draw(3, 10, 4)}, tmp_path / "a.safetensors")
    save_file({EMBED: draw(2, 10, 4)}, tmp_path / "b.safetensors")
    a, b = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in "ab")
    for models in ([a, b], [b, a]):
        with pytest.raises(UserError) as error:
            Recipe(models, (0.5, 0.5), get_method("linear")).check()
        assert f"if '{HEAD}' is tied to '{EMBED}' in 'b', save that model with both" in error.value.fix
        assert "owners" not in error.value.fix


def test_equal_tensors_that_are_no_output_layer_are_kept(tmp_path):
    weight = draw(1, 4, 4)
    save_file({"student.weight": weight, "teacher.weight": weight.clone()}, tmp_path / "a.safetensors")
    save_file({"student.weight": draw(2, 4, 4)}, tmp_path / "b.safetensors")
    models = [open_checkpoint(tmp_path / f"{name}.safetensors") for name in "ab"]
    with pytest.raises(UserError, match=r"missing: teacher\.weight"):
        merged(models, tmp_path / "out")
    found = merged(models, tmp_path / "out", policies=Policies(keys="owners"))
    assert torch.equal(found["teacher.weight"], weight)
