"""Files of the original: the layout of the released models, and a small checkpoint that its trainer wrote."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.parity import golden
from tests.parity.golden import GOLDEN, HAS_GOLDEN, MISSING
from tests.parity.test_golden_base import configuration
from unival.convert import convert
from unival.convert.arguments import complete, native_settings
from unival.convert.layout import TABLES, check_fit, empty_model, infer_config, original_names, rebuild, shapes_of
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.pickles.torch_file import read_torch_file
from unival.pickles.values import plain

pytestmark = pytest.mark.skipif(not HAS_GOLDEN, reason=MISSING)
BASE: dict[str, Any] = {
    "vocab_size": 59457,
    "num_codes": 8192,
    "num_bins": 1000,
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "attn_scale_factor": 2.0,
    "max_text_positions": 1024,
    "text_bucket_size": 256,
    "image_bucket_size": 42,
    "code_image_size": 128,
    "adapter_dim": 0,
    "encoder_prompt_length": 0,
    "image_encoder": {"name": "resnet101", "classifier": 1000},
    "video_encoder": {"depths": [3, 4, 23, 3], "planes": [128, 256, 512, 1024], "groups": 32},
}


def is_audio(name: str) -> bool:
    return "embed_audio" in name or "audio_proj" in name


def is_video(name: str) -> bool:
    return "embed_video" in name or "video_proj" in name


def parts(modalities: str) -> dict[str, dict[str, Any]]:
    keys = golden.read_json("base_keys.json")["base_image_video_audio"]
    if "audio" not in modalities:
        keys = {name: entry for name, entry in keys.items() if not is_audio(name)}
    if "video" not in modalities:
        keys = {name: entry for name, entry in keys.items() if not is_video(name)}
    return keys


@pytest.mark.parametrize(
    ("modalities", "num_tensors", "num_parameters"),
    [
        ("image", 1029, 200_038_704),
        ("image video", 1656, 250_489_072),
        ("image video audio", 1739, 329_979_120),
    ],
)
def test_the_released_layouts_give_the_released_architectures(
    modalities: str, num_tensors: int, num_parameters: int
) -> None:
    keys = parts(modalities)
    shapes = {name: tuple(entry["shape"]) for name, entry in keys.items()}
    assert len(shapes) == num_tensors
    config = infer_config(shapes, {}, "a test")
    expected = BASE | {"video_encoder": BASE["video_encoder"] if "video" in modalities else None}
    assert {name: getattr(config, name) for name in expected} == expected
    model = empty_model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    extra = check_fit(shapes, shapes_of(model.state_dict()), "a test")
    assert {name.split(".", 1)[1] for name in extra} == set(TABLES)
    assert original_names(model.state_dict()) == list(keys)
    for name in extra:
        table = rebuild(name, config, torch.float32)
        assert table is not None
        assert (list(table.shape), str(table.dtype)) == (keys[name]["shape"], f"torch.{keys[name]['dtype']}")
    kept = {n: t for n, t in model.state_dict().items() if str(t.dtype) != f"torch.{keys[n]['dtype']}"}
    assert kept == {}


def test_frozen_norms_and_the_size_of_code_images_are_seen() -> None:
    keys = {name: entry for name, entry in parts("image video").items() if not name.endswith("num_batches_tracked")}
    assert len(keys) == 1448
    shapes = {name: tuple(entry["shape"]) for name, entry in keys.items()}
    shapes["decoder.image_position_idx"] = (1 + 32 * 32 + 769,)
    config = infer_config(shapes, {"hop_size": 480}, "a test")
    assert config.image_encoder == {"name": "resnet101", "classifier": 1000, "frozen_norm": True}
    assert config.video_encoder is not None
    assert config.video_encoder["frozen_norm"] is True
    assert config.code_image_size == 256
    assert original_names(empty_model(config).state_dict()) == list(keys)


def test_the_rebuilt_tables_are_the_originals() -> None:
    probe = golden.read_json("recipe_probe.json")
    config = UnivalConfig(**{**BASE, "image_encoder": None, "video_encoder": None})
    for name in ("encoder.token_rp_bucket", "encoder.image_rp_bucket", "decoder.image_position_idx"):
        table = rebuild(name, config, torch.float32)
        assert table is not None
        assert float(table.double().sum()) == probe[name]["sum"]
        assert float(table.double().square().sum()) == probe[name]["sum_of_squares"]
        assert table.flatten()[: len(probe[name]["first"])].tolist() == probe[name]["first"]
        assert int(table.flatten()[-1]) == probe[name]["last"]


# Arguments that a recorded run chose in another way than a model trained here.
CHOSEN = {"data", "sample_patch_num", "num_frames", "hop_size", "cpu"}


def test_arguments_of_a_model_trained_here_are_those_that_the_original_stores() -> None:
    stored = plain(read_torch_file(GOLDEN / "tiny_checkpoint.pt").tree["cfg"])
    ours = native_settings(configuration("base"), {})
    assert set(ours["task"]) == set(stored["task"])  # its class of options refuses others
    of_runs = {name for group, values in stored.items() if group not in ("model", "task") for name in values or ()}
    frozen = {name for name in stored["model"] if name.startswith("freeze_")}  # written only when they are on
    assert set(stored["model"]) - of_runs - frozen - {"criterion", "optimizer", "lr_scheduler", "scoring"} <= set(
        ours["model"]
    )
    recorded = golden.read_json("configs.json")["base_image_video"]["model_args"]
    differing = {name for name, value in ours["model"].items() if name in recorded and recorded[name] != value}
    assert differing <= CHOSEN
    assert set(complete(ours)) >= set(stored) - {"_name"}


# --- the file of the trainer ------------------------------------------------------------------------------------------

CHECKPOINT = "tiny_checkpoint_outputs"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(GOLDEN / "tiny_checkpoint.pt", folder)
    return folder


@pytest.fixture(scope="module")
def model(converted: Path) -> UnivalForConditionalGeneration:
    return UnivalForConditionalGeneration.from_pretrained(converted, local_files_only=True).eval()


@pytest.fixture(scope="module")
def original() -> dict[str, Any]:
    return torch.load(GOLDEN / "tiny_checkpoint.pt", weights_only=False)


@pytest.mark.slow
def test_a_checkpoint_of_the_trainer_converts_tensor_by_tensor(converted: Path, original: dict[str, Any]) -> None:
    with safe_open(converted / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            tensor = file.get_tensor(name)
            assert tensor.dtype == original["model"][name].dtype, name
            assert torch.equal(tensor, original["model"][name]), name
        left_out = set(original["model"]) - set(file.keys())
    assert left_out == {n for n in original["model"] if n.split(".", 1)[1] in TABLES} | {
        "decoder.embed_tokens.weight",
        "decoder.output_projection.weight",
    }
    assert not (converted / "fairseq.safetensors").exists()  # every table follows from sizes


@pytest.mark.slow
@pytest.mark.parametrize("name", [case["name"] for case in golden.read_cases(CHECKPOINT)])
def test_a_converted_checkpoint_computes_what_the_original_computed(
    model: UnivalForConditionalGeneration, name: str
) -> None:
    case = golden.find(CHECKPOINT, name)
    media = golden.media_of(case, CHECKPOINT)
    source = golden.value(case, CHECKPOINT, "src_tokens")
    prefix = golden.value(case, CHECKPOINT, "prev_output_tokens")
    with torch.inference_mode():
        encoded = model.encoder(source, **media)
        logits = model.decoder.output_projection(model.decoder(prefix, encoded))
    golden.same(
        case, CHECKPOINT, "encoder_out", encoded.last_hidden_state, golden.FEATURES_ATOL, keep=source_mask(encoded)
    )
    golden.same(case, CHECKPOINT, "logits", logits, golden.LOGITS_ATOL, keep=prefix.ne(golden.PAD))


def source_mask(encoded: Any) -> torch.Tensor:
    return encoded.attention_mask.bool()


@pytest.mark.slow
def test_a_converted_checkpoint_goes_back_bit_for_bit(
    converted: Path, original: dict[str, Any], tmp_path: Path
) -> None:
    convert(converted, tmp_path / "back.pt", to="fairseq")
    back = torch.load(tmp_path / "back.pt", weights_only=False, mmap=True)
    assert [*back, "last_optimizer_state"] == list(original)
    assert list(back["model"]) == list(original["model"])
    assert back["model"]._metadata == original["model"]._metadata
    for name, tensor in original["model"].items():
        assert back["model"][name].dtype == tensor.dtype
        assert torch.equal(back["model"][name], tensor), name
    tied = back["model"]["encoder.embed_tokens.weight"].data_ptr()
    assert back["model"]["decoder.output_projection.weight"].data_ptr() == tied
    assert vars(back["cfg"]["model"]) == vars(original["cfg"]["model"])
    assert {n: g for n, g in back["cfg"].items() if n != "model"} == {
        n: g for n, g in original["cfg"].items() if n != "model"
    }
    assert back["optimizer_history"] == original["optimizer_history"]
    assert back["extra_state"]["train_iterator"] == original["extra_state"]["train_iterator"]


@pytest.mark.slow
def test_trained_parameters_are_those_that_were_recorded(converted: Path) -> None:
    recorded = load_file(GOLDEN / f"{CHECKPOINT}.safetensors")
    trained = golden.read_json(f"{CHECKPOINT}.json")["trained"]
    tensors = load_file(converted / "model.safetensors")
    for name, entry in trained.items():
        assert torch.equal(tensors[name], recorded[entry["tensor"]]), name
