"""Model folders: what is written is what is read, nothing is half written."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from unival.checkpoint import atomic_folder, load_encoder, load_model, resolve_model_dir, save_model
from unival.errors import UserError
from unival.model.modeling import UnivalForConditionalGeneration
from unival.schema import RunConfig
from unival.training.sketch import sketch


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("saved") / "model", tiny.model(), tiny.processor(), card="# A model\n")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_a_model_survives_saving_and_loading_bit_for_bit(saved: Path) -> None:
    model, processor = load_model(saved)
    ours, loaded = tiny.model().state_dict(), model.state_dict()
    assert set(ours) == set(loaded)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in ours.items())
    assert not model.training
    assert processor.encode(list(tiny.TEXTS)) == tiny.processor().encode(list(tiny.TEXTS))
    inputs = tiny.prompt_ids(["what does the image describe?"]) | tiny.media("image", 1)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8), tiny.model().generate(**inputs, max_new_tokens=8))


def test_a_model_folder_holds_each_tied_tensor_once_and_no_path(saved: Path) -> None:
    stored = load_file(saved / "model.safetensors")
    assert set(stored) == set(tiny.model().state_dict()) - {
        "decoder.embed_tokens.weight",
        "decoder.output_projection.weight",
    }
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "unival"
    assert config["architectures"] == ["UnivalForConditionalGeneration"]
    assert (saved / "README.md").read_text() == "# A model\n"
    for path in saved.glob("*.json"):
        assert str(saved.parent) not in path.read_text(), path.name
        assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_folder_of_several_files_of_weights_is_named_as_one(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path / "model", max_shard_size="50KB")
    with pytest.raises(UserError, match=r"several files.*max_shard_size"):
        resolve_model_dir(tmp_path / "model")


def test_transformers_loads_the_folder_by_itself(saved: Path) -> None:
    model = UnivalForConditionalGeneration.from_pretrained(saved)
    assert torch.equal(model.encoder.layer_norm.weight, tiny.model().encoder.layer_norm.weight)
    assert model.decoder.output_projection.weight is model.encoder.embed_tokens.weight


def test_weights_can_be_stored_in_half_precision(tmp_path: Path) -> None:
    save_model(tmp_path / "half", tiny.model(), tiny.processor(), dtype=torch.bfloat16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    tables = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert tables == {name for name in stored if "logmel_extractor" in name}
    assert tables
    assert all(torch.equal(stored[name], tiny.model().state_dict()[name]) for name in tables)
    assert {tensor.dtype for name, tensor in stored.items() if name not in tables} == {torch.bfloat16, torch.int64}
    model, _ = load_model(tmp_path / "half")
    name = "encoder.layers.0.fc1.weight"
    assert torch.equal(model.get_parameter(name), tiny.model().get_parameter(name).bfloat16().float())


def test_a_new_model_replaces_the_old_one_completely(copy: Path) -> None:
    (copy / "stale.json").write_text("{}")
    save_model(copy, tiny.build_model(1), tiny.processor())
    assert not (copy / "stale.json").exists()
    model, _ = load_model(copy)
    assert torch.equal(model.encoder.layer_norm.weight, tiny.build_model(1).encoder.layer_norm.weight)
    assert [path.name for path in copy.parent.iterdir()] == ["model"]


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("old")

    def write() -> None:
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "new.txt").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["model", "model/old.txt"]


BAD_CONFIG, UNREADABLE = "not a valid config.json", "unreadable model"
FILES = {
    "broken config": ("config.json", "{", BAD_CONFIG),
    "config of a list": ("config.json", "[]", BAD_CONFIG),
    "config of nothing": ("config.json", "null", BAD_CONFIG),
    "config too deep": ("config.json", "[" * 100_000, BAD_CONFIG),
    "tokenizer of a list": ("tokenizer.json", "[]", UNREADABLE),
    "odd tokenizer settings": ("tokenizer_config.json", '{"eos_token": 3}', UNREADABLE),
    "processor of a list": ("processor_config.json", "[]", UNREADABLE),
    "search of a list": ("generation_config.json", "[]", UNREADABLE),
}
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "other model": ({"model_type": "bart"}, "model_type is 'bart', expected 'unival'"),
    "missing weights": ({"encoder_layers": 3}, r"missing keys: encoder\.image_rel_pos_table_list\.2.weight"),
    "unexpected weights": ({"audio_encoder": None}, r"unexpected keys: encoder\.audio_proj"),
    "text for a size": ({"d_model": "x"}, UNREADABLE),
    "no width": ({"d_model": 0}, UNREADABLE),
    "list for an encoder": ({"image_encoder": [1]}, UNREADABLE),
    "number for depths": ({"video_encoder": {"depths": 3}}, UNREADABLE),
    "unknown dtype": ({"dtype": "float99"}, BAD_CONFIG),
    "number for a section": ({"quantization_config": 3}, BAD_CONFIG),
}


def change(folder: Path, case: str) -> None:
    """Damage a model folder."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    settings = json.loads(config.read_text())
    if case == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif case == "text":
        weights.write_text("version https://git-lfs.github.com/spec/v1")
    elif case in FILES:
        name, content, _ = FILES[case]
        (folder / name).write_text(content)
    elif case in SETTINGS:
        config.write_text(json.dumps(settings | SETTINGS[case][0]))
    elif case == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / case).unlink()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("model.safetensors", "model.safetensors is missing"),
        ("config.json", "config.json is missing"),
        ("truncated", "unreadable model"),
        ("text", "unreadable model"),
        *((case, row[-1]) for case, row in (FILES | SETTINGS).items()),
        ("no tokenizer", "no tokenizer: tokenizer.json is missing"),
    ],
)
def test_an_incomplete_model_is_refused_with_the_reason(
    copy: Path, case: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copy, case)
    with pytest.raises(UserError, match=message) as caught:
        load_model(copy)
    assert str(copy) in str(caught.value)
    assert len(caught.value.lines()) == 3
    assert capsys.readouterr() == ("", "")


def test_a_model_of_other_sizes_is_refused(copy: Path) -> None:
    config = copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"encoder_ffn_dim": 48}))
    with pytest.raises(UserError, match=r"mismatched keys: .*fc1"):
        load_model(copy)


def test_a_folder_that_is_not_there_names_the_built_in_models() -> None:
    with pytest.raises(UserError, match=r"no such model folder: nowhere.*unival-tiny"):
        resolve_model_dir("nowhere")


def test_an_encoder_that_the_model_has_not_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    monkeypatch.setattr(model.config, "audio_encoder", None)
    with pytest.raises(UserError, match="this model has no audio_encoder"):
        load_encoder(model, "audio_encoder", "unival-tiny-audio")


def test_a_plan_names_a_start_whose_settings_are_no_object(copy: Path) -> None:
    (copy / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json: expected an object"):
        sketch(RunConfig.model_validate(tiny.run_settings(copy, init=str(copy), model={}, processor={})))
