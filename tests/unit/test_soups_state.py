from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from soups.errors import UserError
from soups.merge import Recipe, merge, plan
from soups.methods import get_method
from soups.state import check_compatible, open_checkpoint, write_text


def save(folder, tensors, **config):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def tensors(seed=0, steps=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(3, 4, generator=generator),
        "layer.bias": torch.randn(3, generator=generator).to(torch.bfloat16),
        "scale": torch.randn((), generator=generator, dtype=torch.float64),
        "num_steps": torch.tensor(steps),
        "mask": torch.tensor([True, False, True]),
    }


def recipe(*checkpoints, weights=(0.5, 0.5), **options):
    return Recipe(checkpoints, weights, get_method("linear"), **options)


def test_headers_tell_names_shapes_and_dtypes(tmp_path):
    infos = save(tmp_path / "a", tensors()).infos
    assert {name: (info.dtype, info.shape) for name, info in infos.items()} == {
        "layer.bias": ("BF16", (3,)),
        "layer.weight": ("F32", (3, 4)),
        "mask": ("BOOL", (3,)),
        "num_steps": ("I64", ()),
        "scale": ("F64", ()),
    }
    assert infos["layer.weight"].num_bytes == 48


def test_a_sharded_checkpoint_reads_as_one(tmp_path):
    whole = tensors()
    parts = {"model-1.safetensors": list(whole)[:2], "model-2.safetensors": list(whole)[2:]}
    for file, names in parts.items():
        save_file({name: whole[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = open_checkpoint(tmp_path).load()
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match="1 of 2 shards are missing: model-2"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("num_bytes", [0, 5, 20, -1])
def test_truncated_files_are_refused(tmp_path, num_bytes):
    save(tmp_path / "a", tensors())
    path = tmp_path / "a" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(UserError, match="truncated or corrupt"):
        open_checkpoint(tmp_path / "a")


def test_a_header_of_another_shape_is_refused(tmp_path):
    for raw in (b"[]", b'{"a": 3}', b'{"a": {"dtype": "F32"}}', b"\xff\xff"):
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(raw).to_bytes(8, "little") + raw)
        with pytest.raises(UserError, match="corrupt"):
            open_checkpoint(path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no model\.safetensors .*tf_model\.h5"):
        open_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no such checkpoint"):
        open_checkpoint(tmp_path / "nowhere")


def test_differences_are_named_with_their_reason(tmp_path):
    other = tensors()
    other["extra"] = other.pop("scale")
    other["layer.weight"] = torch.zeros(4, 3)
    other["layer.bias"] = other["layer.bias"].float()
    with pytest.raises(UserError) as error:
        check_compatible([save(tmp_path / "a", tensors()), save(tmp_path / "b", other)])
    text = str(error.value)
    assert "'b' does not match 'a' in 4 tensors" in text
    assert "missing: scale" in text
    assert "extra: extra" in text
    assert "shape: layer.weight is F32 [4, 3], expected F32 [3, 4]" in text
    assert "dtype: layer.bias is F32 [3], expected BF16 [3]" in text


def test_at_most_ten_differences_are_listed(tmp_path):
    many = {f"t{i}": torch.zeros(1) for i in range(30)}
    with pytest.raises(UserError, match="and 21 more") as error:
        check_compatible([save(tmp_path / "a", many), save(tmp_path / "b", {"u": torch.zeros(1)})])
    assert str(error.value).count("missing:") == 10


def test_a_merge_has_the_values_the_side_files_and_the_provenance(tmp_path):
    a, b = (
        save(tmp_path / "a", tensors(1), model_type="tiny"),
        save(tmp_path / "b", tensors(2), model_type="b"),
    )
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    (tmp_path / "a" / "optimizer.pt").write_bytes(b"x")
    merge(recipe(a, b, weights=(0.25, 0.75)), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("layer.weight", "scale"):
        expected = 0.25 * tensors(1)[name].double() + 0.75 * tensors(2)[name].double()
        assert torch.equal(merged[name], expected.to(merged[name].dtype))
    assert merged["layer.bias"].dtype == torch.bfloat16
    assert merged["num_steps"].item() == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
    }
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "tiny"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert a.digest in card
    assert b.digest in card


def test_all_the_weight_on_one_model_gives_its_bytes_for_every_dtype(tmp_path):
    a, b = save(tmp_path / "a", tensors(1)), save(tmp_path / "b", tensors(2, steps=9))
    merge(recipe(a, b, weights=(0.0, 1.0), integers="first"), tmp_path / "out")
    merged, expected = open_checkpoint(tmp_path / "out").load(), b.load()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_integers_that_differ_are_an_error_unless_a_policy_is_given(tmp_path):
    a, b = save(tmp_path / "a", tensors(1)), save(tmp_path / "b", tensors(2, steps=9))
    with pytest.raises(UserError, match="num_steps"):
        merge(recipe(a, b), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    merge(recipe(a, b, integers="first"), tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["num_steps"].item() == 3


def test_the_order_of_three_models_changes_no_byte(tmp_path):
    models = [save(tmp_path / name, tensors(seed)) for seed, name in enumerate("abc")]
    weights = [0.2, 0.3, 0.5]
    for out, order in (("x", (0, 1, 2)), ("y", (2, 0, 1))):
        merge(recipe(*[models[i] for i in order], weights=[weights[i] for i in order]), tmp_path / out)
    first, second = ((tmp_path / out / "model.safetensors").read_bytes() for out in "xy")
    assert first == second


def test_the_output_respects_the_umask_and_is_never_overwritten(tmp_path):
    a, b = save(tmp_path / "a", tensors(1)), save(tmp_path / "b", tensors(2))
    before = os.umask(0o027)
    try:
        merge(recipe(a, b), tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "model.safetensors").stat().st_mode) == 0o640
    with pytest.raises(UserError, match="already there"):
        merge(recipe(a, b), tmp_path / "out")


def test_a_plan_counts_from_headers(tmp_path):
    a, b = save(tmp_path / "a", tensors(1)), save(tmp_path / "b", tensors(2))
    summary = plan(recipe(a, b))
    assert (summary["num_tensors"], summary["num_parameters"]) == (5, 16)
    assert summary["bytes_written"] == 48 + 6 + 8 + 8 + 3
    assert summary["bytes_read"] == 2 * summary["bytes_written"]
    assert summary["integer_tensors"] == ["mask", "num_steps"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
