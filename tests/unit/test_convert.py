"""Checkpoints of the original, both ways, on a model of a few thousand parameters."""

import argparse
import collections
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from tests import tiny
from unival.checkpoint import load_model, save_model
from unival.convert import convert
from unival.convert.folder import EXTRA, RECORD
from unival.convert.layout import EMBEDDING, TIED, original_names, rebuild
from unival.errors import UserError
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration

ENCODERS: dict[str, Any] = {
    "image_encoder": {"name": "resnet18", "channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1], "classifier": 5},
    "video_encoder": tiny.VIDEO_ENCODER,
    "audio_encoder": tiny.AUDIO_ENCODER | {"stored_fourier": True},
}
SETTINGS: dict[str, Any] = {
    "arch": "unival_base",
    "task": "caption",
    "code_dict_size": tiny.NUM_CODES,
    "num_bins": tiny.NUM_BINS,
    "hop_size": tiny.AUDIO_ENCODER["hop"],
    "sample_rate": tiny.AUDIO_ENCODER["sample_rate"],
    "patch_image_size": 24,
    "patch_frame_size": 16,
    "num_frames": 4,
    "max_audio_len": 2000,
    "dropout": 0.0,
    "encoder_drop_path_rate": 0.0,
    "disable_entangle": True,
    "lr": [1e-5],
    "resnet_model_path": "weights/resnet101.pth",
}


def build(**changes: Any) -> UnivalForConditionalGeneration:
    return tiny.build_model(**(ENCODERS | changes))


def state_of(model: UnivalForConditionalGeneration) -> dict[str, Tensor]:
    """Return the state dict of a model as the original stores it."""
    own = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in TIED}
    own |= dict.fromkeys(TIED, model.state_dict()[EMBEDDING].clone())
    state: dict[str, Tensor] = collections.OrderedDict()
    for name in original_names(own):
        table = rebuild(name, model.config, torch.float32)
        state[name] = own[name] if table is None else table.clone()
    return state


def contents(state: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    """Return what a file of the original holds."""
    return {
        "args": None,
        "cfg": {"_name": None, "task": {"_name": "caption"}, "model": argparse.Namespace(**SETTINGS)},
        "model": state,
        "criterion": None,
        "optimizer_history": [{"criterion_name": "C", "optimizer_name": "FairseqAdam", "num_updates": 7}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 3}, "val_loss": 0.5, "metrics": [("loss", torch.tensor(1.0))]},
        "last_optimizer_state": {"state": {0: {"step": 4, "exp_avg": torch.zeros(9)}}},
    } | changes


def save(path: Path, content: dict[str, Any], is_zip: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


def load_unsafely(path: Path) -> dict[str, Any]:
    """Load as the original does."""
    return torch.load(path, weights_only=False)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def assert_same_output(one: UnivalForConditionalGeneration, other: UnivalForConditionalGeneration) -> None:
    text, prefix = torch.tensor([[0, 9, 8, 7, 2]]), torch.tensor([[0, 5, 6]])
    media = {"image": torch.randn(1, 3, 48, 48), "video": torch.randn(1, 3, 4, 24, 24), "audio": torch.randn(1, 2000)}
    names = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_values"}
    for kind, medium in media.items():
        if getattr(one.config, f"{kind}_encoder") is not None:
            inputs = {"input_ids": text, "decoder_input_ids": prefix, names[kind]: medium}
            with torch.inference_mode():
                torch.testing.assert_close(one(**inputs).logits, other(**inputs).logits, atol=1e-4, rtol=1e-4)


def loaded(folder: Path) -> UnivalForConditionalGeneration:
    return UnivalForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()


def test_a_file_becomes_a_folder_that_computes_the_same_and_goes_back(tmp_path: Path) -> None:
    model = build()
    state = state_of(model)
    state._metadata = {"encoder": {"version": 1}}  # pyright: ignore[reportAttributeAccessIssue]
    source = save(tmp_path / "x.pt", contents(state))
    summary = convert(source, tmp_path / "folder")
    assert summary["media"] == ["image", "video", "audio"]
    assert summary["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert summary["tensors"] == len(state)
    assert_same_output(model, loaded(tmp_path / "folder"))
    assert not (tmp_path / "folder" / EXTRA).exists()

    convert(tmp_path / "folder", tmp_path / "back.pt", to="fairseq")
    back = load_unsafely(tmp_path / "back.pt")
    assert_same(back["model"], state)
    assert back["model"]._metadata == {"encoder": {"version": 1}}
    assert back["model"][EMBEDDING].data_ptr() == back["model"][TIED[1]].data_ptr() == back["model"][TIED[2]].data_ptr()
    # Files that only the construction of the model would need are not asked for again.
    assert vars(back["cfg"]["model"]) == SETTINGS | {"resnet_model_path": None}
    assert back["optimizer_history"][-1]["num_updates"] == 7
    assert back["extra_state"]["train_iterator"] == {"epoch": 3}
    assert "last_optimizer_state" not in back  # as in files that were saved without it
    assert (tmp_path / "back.pt").stat().st_size < 2 * source.stat().st_size

    convert(tmp_path / "back.pt", tmp_path / "again")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()


def without(state: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    kept = {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}
    return collections.OrderedDict(kept)


VIDEO, AUDIO = ("embed_video", "video_proj"), ("embed_audio", "audio_proj")


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Store floats as `--fp16` does, which leaves the spectrogram in float32."""
    fixed = ("spectrogram_extractor", "logmel_extractor")
    return collections.OrderedDict(
        (name, t.half() if t.is_floating_point() and not any(part in name for part in fixed) else t)
        for name, t in state.items()
    )


def frozen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the counters of frozen norms: those of pictures and clips."""
    return without(state, *(n for n in state if n.endswith("num_batches_tracked") and "embed_audios" not in n))


STATES: dict[str, Any] = {
    "image only": lambda state: without(state, *VIDEO, *AUDIO),
    "text only": lambda state: without(state, *VIDEO, *AUDIO, "embed_images", "image_proj"),
    "fp16": halved,
    "frozen": frozen,
    "one copy": lambda state: without(state, *TIED[1:]),
}
CONTENTS: dict[str, Any] = {
    "no optimizer": lambda state: contents(state, last_optimizer_state=None),
    "plain dict": lambda state: contents(state, cfg={"model": SETTINGS, "task": {}}),
    "args": lambda state: contents(state, cfg=None, args=argparse.Namespace(**SETTINGS)),
    "only weights": lambda state: state,
}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", [*STATES, *CONTENTS])
def test_every_kind_of_file_is_read_and_goes_back(tmp_path: Path, kind: str, is_zip: bool) -> None:
    state = STATES.get(kind, dict)(state_of(build()))
    source = save(tmp_path / "x.pt", CONTENTS.get(kind, contents)(state), is_zip)
    summary = convert(source, tmp_path / "folder")
    assert summary["source"]["format"] == f"torch.save, {'zip' if is_zip else 'legacy'}"
    assert summary["dtype"] == ("float16" if kind == "fp16" else "float32")
    model = loaded(tmp_path / "folder")
    for name, tensor in model.state_dict().items():
        if name in state:
            assert torch.equal(tensor, state[name].to(tensor.dtype)), name
    convert(tmp_path / "folder", tmp_path / "back.pt", to="fairseq")
    assert_same(load_unsafely(tmp_path / "back.pt")["model"], state)


@pytest.mark.parametrize("kind", ["fp16", "frozen", "args", "plain dict", "image only"])
def test_the_architecture_is_inferred(tmp_path: Path, kind: str) -> None:
    state = STATES.get(kind, dict)(state_of(build()))
    convert(save(tmp_path / "x.pt", CONTENTS.get(kind, contents)(state)), tmp_path / "folder")
    config = UnivalConfig.from_pretrained(tmp_path / "folder")
    expected = {name: ENCODERS[name] for name in ENCODERS}
    if kind == "frozen":
        for name in ("image_encoder", "video_encoder"):
            expected[name] = expected[name] | {"frozen_norm": True}
    if kind == "image only":
        expected |= {"video_encoder": None, "audio_encoder": None}
    assert config.image_encoder == expected["image_encoder"]
    assert config.video_encoder == expected["video_encoder"]
    heard = ("channels", "sample_rate", "n_fft", "hop", "mel_bins", "stored_fourier")
    wanted = expected["audio_encoder"]
    assert config.audio_encoder == (wanted and {name: wanted[name] for name in heard})
    sizes = tiny.SIZES | {"num_codes": tiny.NUM_CODES, "num_bins": tiny.NUM_BINS}
    assert {name: getattr(config, name) for name in sizes} == sizes
    assert json.loads((tmp_path / "folder" / "config.json").read_text(encoding="utf-8"))["dtype"] == (
        "float16" if kind == "fp16" else "float32"
    )


def test_averaged_weights_are_taken_when_asked_for(tmp_path: Path) -> None:
    raw, averaged = state_of(build()), state_of(build(seed=1))
    extra = {"ema": averaged, "ema_fp32_params": averaged}
    source = save(tmp_path / "x.pt", contents(raw, extra_state=extra))
    raw_summary = convert(source, tmp_path / "raw")
    ema_summary = convert(source, tmp_path / "ema", is_ema=True)
    assert (raw_summary["source"]["weights"], ema_summary["source"]["weights"]) == ("raw", "EMA")
    for summary, left_out in (
        (raw_summary, "averaged weights, which --ema converts, the optimizer's state"),
        (convert(source, tmp_path / "again.pt", to="fairseq"), "averaged weights, which --ema converts"),
        (ema_summary, "raw weights, which are converted without --ema, the optimizer's state"),
    ):
        assert sum(f"left out of what the file holds: {left_out}" in note for note in summary["notes"]) == 1
    for folder, state in (("raw", raw), ("ema", averaged)):
        assert torch.equal(load_file(tmp_path / folder / "model.safetensors")[EMBEDDING], state[EMBEDDING])
    only = save(tmp_path / "z.pt", contents(raw, extra_state={"ema_fp32_params": averaged}))
    convert(only, tmp_path / "fp32", is_ema=True)
    assert torch.equal(load_file(tmp_path / "fp32" / "model.safetensors")[EMBEDDING], averaged[EMBEDDING])
    with pytest.raises(UserError, match="no averaged weights"):
        convert(save(tmp_path / "y.pt", contents(raw)), tmp_path / "no", is_ema=True)
    with pytest.raises(UserError, match="no averaged weights beside"):
        convert(tmp_path / "raw", tmp_path / "no.pt", to="fairseq", is_ema=True)


def test_what_sizes_do_not_give_is_kept_and_told(tmp_path: Path) -> None:
    state = state_of(build())
    state["classification_heads.x.dense.weight"] = torch.randn(3, 2)
    state["decoder.embed_tokens.weight"] = state["decoder.embed_tokens.weight"] + 1
    state["decoder.token_rp_bucket"] = state["decoder.token_rp_bucket"] + 1
    summary = convert(save(tmp_path / "x.pt", contents(state)), tmp_path / "folder")
    notes = " ".join(summary["notes"])
    assert "decoder.embed_tokens.weight differs" in notes
    assert "decoder.token_rp_bucket is not the table" in notes
    convert(tmp_path / "folder", tmp_path / "back.pt", to="fairseq")
    assert_same(load_unsafely(tmp_path / "back.pt")["model"], state)


def test_a_record_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    folder, back = tmp_path / "folder", tmp_path / "back.pt"
    convert(save(tmp_path / "x.pt", contents(state_of(build()))), folder)
    good = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    order = good["order"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"order": [*order, "encoder.new"]}, "1 tensors are not those of the conversion: encoder.new"),
        ({"order": [*order, "step"]}, "1 tensors are not those of the conversion: step"),
        ({"order": [n for n in order if "video" not in n]}, "not those of the conversion: encoder.embed_video"),
        ({"order": [n for n in order if n not in TIED]}, "embedding is missing"),
        ({"order": [*order, order[0]]}, "named twice"),
        ({"order": [3]}, "not the record of a conversion"),
        ({"extra_state": [1]}, "not the record of a conversion"),
    ]
    for changes, message in cases:
        (folder / RECORD).write_text(json.dumps(good | changes), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            convert(folder, back, to="fairseq")
    (folder / RECORD).unlink()  # as the message says
    convert(folder, back, to="fairseq")
    assert set(load_unsafely(back)["model"]) == set(order)


def test_a_configuration_without_groups_goes_back(tmp_path: Path) -> None:
    source = save(tmp_path / "x.pt", contents(state_of(build()), cfg={"model": [1], "task": "x", "_name": None}))
    convert(source, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.pt", to="fairseq")
    assert load_unsafely(tmp_path / "back.pt")["cfg"]["task"]["_name"] == "caption"


def test_copies_that_differ_in_the_sign_of_zero_go_back_bit_for_bit(tmp_path: Path) -> None:
    state = state_of(build())
    state[EMBEDDING] = state[EMBEDDING].clone()
    state[EMBEDDING][1], state[TIED[2]][1] = 0.0, -0.0
    convert(save(tmp_path / "x.pt", contents(state)), tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.pt", to="fairseq")
    back = load_unsafely(tmp_path / "back.pt")["model"]
    assert all(torch.equal(back[name].view(torch.int32), state[name].view(torch.int32)) for name in TIED)


def test_an_embedding_that_was_trained_on_is_written_in_place_of_old_copies(tmp_path: Path) -> None:
    state = state_of(build())
    state[TIED[1]] = state[TIED[1]] + 1
    convert(save(tmp_path / "x.pt", contents(state)), tmp_path / "folder")
    model = loaded(tmp_path / "folder")
    with torch.no_grad():
        model.encoder.embed_tokens.weight.mul_(2)
    model.save_pretrained(tmp_path / "folder")
    notes = convert(tmp_path / "folder", tmp_path / "back.pt", to="fairseq")["notes"]
    assert any("changed since the conversion" in note and TIED[1] in note for note in notes)
    back = load_unsafely(tmp_path / "back.pt")["model"]
    assert all(torch.equal(back[name], 2 * state[EMBEDDING]) for name in TIED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("encoder.layers.1.fc1.weight"), "1 tensors missing: encoder.layers.1.fc1.weight"),
        (lambda state: state.update({"encoder.pos_ln.bias": torch.zeros(3)}), "of another shape"),
        (lambda state: state.update({"encoder.new.bias": torch.zeros(3)}), "unknown: encoder.new.bias"),
        (lambda state: state.update({"step": torch.zeros(1)}), "unknown: step"),
        (lambda state: state.update({"other.version": torch.zeros(1)}), "unknown: other.version"),
        (lambda state: state.update({"encoder.layers.0.self_attn.q_norm.weight": torch.zeros(3)}), "qk-norm"),
        (lambda state: state.update({"encoder.layers.0.w_resid": torch.zeros(3)}), "scale-resids"),
        (lambda state: state.update({"encoder.type_embedding.weight": torch.zeros(4, 16)}), r"add-mm-type.*x\.pt"),
        (lambda state: state.update({"encoder.layers.0.self_attn.c_attn": torch.zeros(())}), "has too few axes"),
        (lambda state: [state.pop(name) for name in TIED], "not the weights of a UnIVAL"),
        (
            lambda state: state.update(dict.fromkeys(TIED, torch.zeros(50, 7))),
            "no UnIVAL model has these sizes: d_model 7",
        ),
        (lambda state: state.update(dict.fromkeys(TIED, torch.zeros(0, 16))), "into an embedding of 0 rows"),
        (lambda state: state.update(dict.fromkeys(TIED, torch.zeros(9))), "has too few axes"),
        (lambda state: state.update({"decoder.image_position_idx": torch.zeros(3)}), "not the weights of a UnIVAL"),
        (
            lambda state: state.update({"encoder.layers.999999999.fc1.weight": torch.zeros(1)}),
            "23 tensors missing",
        ),
        (lambda state: state.clear(), "no weights under"),
    ],
)
def test_another_architecture_is_refused_with_its_names(tmp_path: Path, change: Any, message: str) -> None:
    state = state_of(build())
    change(state)
    with pytest.raises(UserError, match=message):
        convert(save(tmp_path / "x.pt", contents(state)), tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt"]


@pytest.mark.parametrize("name", ["num_bins", "code_dict_size"])
def test_a_vocabulary_beyond_the_embedding_is_refused(tmp_path: Path, name: str) -> None:
    cfg = {"model": SETTINGS | {name: 3_000_000}}
    with pytest.raises(UserError, match=r"3000000 .*do not fit into an embedding of \d+ rows .*x\.pt"):
        convert(save(tmp_path / "x.pt", contents(state_of(build()), cfg=cfg)), tmp_path / "folder")


def test_a_table_of_another_size_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of 60,000 text positions has 29 GB, those positions themselves 4 MB of a file."""
    state = state_of(build())
    for name in ("encoder.embed_positions.weight", "decoder.embed_positions.weight"):
        state[name] = torch.zeros(60_002, 16)
    for name in ("encoder.token_rp_bucket", "decoder.token_rp_bucket"):
        state[name] = torch.zeros(3, dtype=torch.int64)
    monkeypatch.setattr("unival.model.positions.text_buckets", lambda *_: pytest.fail("the table was computed"))
    summary = convert(save(tmp_path / "x.pt", contents(state)), tmp_path / "folder")
    assert any("encoder.token_rp_bucket is not the table" in note for note in summary["notes"])


def test_adapters_and_prefixes_are_seen(tmp_path: Path) -> None:
    options = {"adapter_dim": 3, "adapter_per_modality": True, "encoder_prompt_length": 4, "prompt_hidden_dim": 5}
    model = build(**options)
    convert(save(tmp_path / "x.pt", contents(state_of(model))), tmp_path / "folder")
    converted = loaded(tmp_path / "folder")
    assert {name: getattr(converted.config, name) for name in options} == options
    assert_same_output(model, converted)


def test_low_rank_updates_go_out_inside_their_matrices(tmp_path: Path) -> None:
    model = tiny.build_model(lora_rank=2)  # all parameters are random, those of the updates too
    assert any(parameter.any() for name, parameter in model.named_parameters() if name.endswith("lora_B"))
    save_model(tmp_path / "own", model, tiny.processor())
    assert "LoRA" in " ".join(convert(tmp_path / "own", tmp_path / "x.pt", to="fairseq")["notes"])
    convert(tmp_path / "x.pt", tmp_path / "again")
    again = loaded(tmp_path / "again")
    assert again.config.lora_rank == 0
    assert_same_output(model, again)


def test_a_model_trained_here_goes_out_and_comes_back(tmp_path: Path) -> None:
    model = tiny.model()
    save_model(tmp_path / "own", model, tiny.processor())
    summary = convert(tmp_path / "own", tmp_path / "x.pt", to="fairseq")
    assert any("cannot build this image encoder" in note for note in summary["notes"])
    content = load_unsafely(tmp_path / "x.pt")
    arguments = content["cfg"]["model"]
    assert isinstance(arguments, argparse.Namespace)
    assert (arguments.arch, arguments.encoder_embed_dim, arguments.scale_heads) == ("unival_base", 16, True)
    assert content["cfg"]["task"]["num_bins"] == tiny.NUM_BINS
    assert list(content["model"]) == original_names(model.state_dict())
    convert(tmp_path / "x.pt", tmp_path / "again", tokenizer=str(tmp_path / "own"))
    again, processor = load_model(tmp_path / "again")
    assert_same_output(model, again)
    assert (processor.num_frames, processor.image_px, processor.num_bins) == (4, 24, tiny.NUM_BINS)


@pytest.mark.parametrize(
    "options",
    [
        {"act_layer": "gelu"},
        {"avg_down": True},
        {"output_stride": 8},
        {"name": "seresnet18"},
        {"name": "resnet26d"},
    ],
)
def test_encoders_that_a_file_would_not_show_stay_here(tmp_path: Path, options: dict[str, Any]) -> None:
    image = {"name": "resnet18", "channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}
    save_model(
        tmp_path / "own", tiny.build_model(image_encoder=image | options, image_bucket_size=10), tiny.processor()
    )
    with pytest.raises(UserError, match=r"the original's format cannot hold image_encoder .* would come back as"):
        convert(tmp_path / "own", tmp_path / "x.pt", to="fairseq")
    assert not (tmp_path / "x.pt").exists()


def test_options_of_training_are_no_part_of_what_a_file_shows(tmp_path: Path) -> None:
    image = tiny.ENCODERS["image_encoder"] | {"drop_path_rate": 0.1}
    model = tiny.build_model(image_encoder=image)
    save_model(tmp_path / "own", model, tiny.processor())
    convert(tmp_path / "own", tmp_path / "x.pt", to="fairseq")
    convert(tmp_path / "x.pt", tmp_path / "again")
    assert_same_output(model, loaded(tmp_path / "again"))


def test_a_folder_without_a_tokenizer_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(save(tmp_path / "x.pt", contents(state_of(build()))), tmp_path / "folder")
    with pytest.raises(UserError, match=r"no tokenizer.*unival convert .* --tokenizer DIR"):
        load_model(tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    assert isinstance(found["model"], UnivalForConditionalGeneration)


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "own", tiny.model(), tiny.processor())
    state = state_of(build(vocab_size=len(tiny.processor().tokenizer) + 1))
    with pytest.raises(UserError, match="the tokenizer has"):
        convert(save(tmp_path / "x.pt", contents(state)), tmp_path / "folder", tokenizer=str(tmp_path / "own"))
    assert not (tmp_path / "folder").exists()


def test_the_tokenizer_of_bart_will_do_where_it_brings_its_own_file(tmp_path: Path) -> None:
    """A folder of `facebook/bart-base` has a `tokenizer.json` of its own, without codes and bins."""
    own = json.loads(tiny.processor().tokenizer.backend_tokenizer.to_str())
    added = [token["content"] for token in own["added_tokens"]]
    own["added_tokens"] = [token for token in own["added_tokens"] if not token["content"].startswith(("<code", "<bin"))]
    bart = tmp_path / "bart"
    bart.mkdir()
    (bart / "tokenizer.json").write_text(json.dumps(own), encoding="utf-8")
    assert sum(token.startswith("<code") for token in added) == tiny.NUM_CODES
    source = save(tmp_path / "x.pt", contents(state_of(build())))
    convert(source, tmp_path / "folder", tokenizer=str(bart))
    _, processor = load_model(tmp_path / "folder")
    assert processor.encode(tiny.TEXTS) == tiny.processor().encode(tiny.TEXTS)
    assert processor.encode(["<bin_3> <code_2>"]) == tiny.processor().encode(["<bin_3> <code_2>"])


def test_the_card_names_the_source_and_shows_nothing_that_a_file_says_unfiltered(tmp_path: Path) -> None:
    hostile = SETTINGS | {"task": "<script>alert(1)</script>\x1b[31m", "arch": "[x](http://evil)" * 99}
    changes = {"cfg": {"model": hostile}}
    summary = convert(save(tmp_path / "x.pt", contents(state_of(build()), **changes)), tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    assert summary["source"]["sha256"] in card
    assert summary["files"]["model.safetensors"]["sha256"] in card
    assert "| updates | 7 |" in card
    assert not {"<script>", "\x1b", "[x]("} & {part for part in ("<script>", "\x1b", "[x](") if part in card}
    assert json.loads((tmp_path / "folder" / RECORD).read_text(encoding="utf-8"))["cfg"]["model"]["task"][0] == "<"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = save(tmp_path / "x.pt", contents(state_of(build())))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("x", encoding="utf-8")
    for destination, to in ((tmp_path / "folder", "transformers"), (source, "fairseq")):
        with pytest.raises(UserError, match="there already"):
            convert(source, destination, to=to)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="this is a folder"):
        convert(tmp_path / "folder", tmp_path / "y")
    with pytest.raises(UserError, match="no such file"):
        convert(tmp_path / "absent.pt", tmp_path / "y")
    with pytest.raises(UserError, match="not a regular file"):
        convert("/dev/null", tmp_path / "y")


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    import resource

    source = save(tmp_path / "x.pt", contents(state_of(build())))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for destination, to in ((tmp_path / "y", "transformers"), (tmp_path / "y.pt", "fairseq")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(UserError, match=r"cannot write: .*File too large.* bytes are needed"):
                convert(source, destination, to=to)  # pyright: ignore[reportArgumentType]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    convert(save(tmp_path / "x.pt", contents(state_of(build()))), tmp_path / "folder")
    weights = tmp_path / "folder" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("encoder.pos_ln.bias")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors do not fit config.json: encoder.pos_ln.bias"):
        convert(tmp_path / "folder", tmp_path / "y.pt", to="fairseq")
    weights.write_bytes(b"x")
    with pytest.raises(UserError, match="unreadable weights"):
        convert(tmp_path / "folder", tmp_path / "y.pt", to="fairseq")
    for content in ("{", "[]"):
        (tmp_path / "folder" / "config.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="not a valid config"):
            convert(tmp_path / "folder", tmp_path / "y.pt", to="fairseq")


def test_the_command_prints_a_summary(tmp_path: Path) -> None:
    from unival.cli import app

    source = save(tmp_path / "x.pt", contents(state_of(build())))
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "folder"), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["written"] == str(tmp_path / "folder")
    assert set(summary["files"]) >= {"model.safetensors", "config.json", "generation_config.json"}
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "folder"), str(tmp_path / "y.pt"), "--to", "fairseq"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"wrote {tmp_path / 'y.pt'}: ")


MEASURE = """
import resource, sys, threading, time
from unival.convert import convert
import unival.model.modeling
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, peak = resident(), [0]
def watch():
    while True:
        peak[0] = max(peak[0], resident())
        time.sleep(0.001)
threading.Thread(target=watch, daemon=True).start()
convert(sys.argv[1], sys.argv[2], to=sys.argv[3])
print(peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_memory_stays_below_one_and_a_half_times_the_file(tmp_path: Path, is_zip: bool) -> None:
    model = build(vocab_size=1_500_000, d_model=32)  # 192 MB of embedding, as one tensor
    source = save(tmp_path / "x.pt", contents(state_of(model)), is_zip)
    size = source.stat().st_size
    del model
    runs = ((source, tmp_path / "folder", "transformers"), (tmp_path / "folder", tmp_path / "y.pt", "fairseq"))
    for start, end, to in runs:
        command = [sys.executable, "-c", MEASURE, str(start), str(end), to]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 1.5 * size, f"{int(done.stdout) / size:.2f} times the file, to {to}"
