"""Files that we write, read the way the original reads them (specification 9.1, 9.3, 9.4).

The reader is another process that has torch and a bare class called Namespace, and nothing of ours: what our allow-list
accepts from our own files proves little.
"""

import argparse
import json
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.unit.test_convert import SETTINGS, build, contents, save, state_of
from unival.checkpoint import save_model
from unival.convert import convert
from unival.convert.layout import TIED, original_names
from unival.pickles.torch_file import read_torch_file

READER = """
import json, sys, types
import torch

sys.modules["argparse"] = stub = types.ModuleType("argparse")
class Namespace:
    pass
stub.Namespace = Namespace

# Its configuration class takes plain values only; the model's arguments are passed through.
def leaves(value):
    if isinstance(value, dict):
        return {leaf for key, item in value.items() for leaf in leaves(key) | leaves(item)}
    if isinstance(value, (list, tuple)):
        return {leaf for item in value for leaf in leaves(item)}
    return {type(value).__name__}

def content(path):
    state = torch.load(path, map_location="cpu", weights_only=False)
    foreign = {"unival", "transformers", "fairseq", "omegaconf"} & {name.split(".")[0] for name in sys.modules}

    if state["args"] is not None:
        model, groups = state["args"], {}
    else:
        model = state["cfg"]["model"]
        groups = {name: group for name, group in state["cfg"].items() if name != "model"}
    history = state["optimizer_history"][-1]
    return json.dumps({
        "foreign": sorted(foreign),
        "keys": list(state),
        "leaves": sorted(leaves(groups)),
        "kind": type(model) is Namespace,
        "model": vars(model),
        "task": groups.get("task"),
        "print_alignment": (groups.get("generation") or {}).get("print_alignment", "absent"),
        "history": [history[name] for name in ("criterion_name", "optimizer_name", "num_updates")],
        "epoch": state["extra_state"]["train_iterator"]["epoch"],
        "optimizer": state.get("last_optimizer_state"),
        "tensors": {name: [str(tensor.dtype), list(tensor.shape), tensor.is_contiguous()]
                    for name, tensor in state["model"].items()},
        "tied": len({state["model"][name].data_ptr() for name in sys.argv[1:]}),
    })

for line in sys.stdin:
    print(content(line.rstrip()), flush=True)
"""


@pytest.fixture(scope="module")
def read() -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Give a function that has a file loaded by a process without our code, and returns what is in it."""
    words = [sys.executable, "-c", READER, *TIED]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(path: Path) -> dict[str, Any]:
            print(path, file=process.stdin, flush=True)
            assert process.stdout is not None
            return json.loads(process.stdout.readline())

        yield ask


def globals_of(path: Path) -> set[str]:
    """Return the names that the pickle in a file refers to."""
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return {arg for operation, arg, _ in pickletools.genops(archive.read(name)) if operation.name == "GLOBAL"}


CONTENTS: dict[str, Any] = {
    "groups": contents,
    "only a model": lambda state: contents(state, cfg={"model": SETTINGS}),
    "args": lambda state: contents(state, cfg=None, args=argparse.Namespace(**SETTINGS)),
    "only weights": lambda state: state,
}


@pytest.fixture(scope="module", params=[*CONTENTS, "trained here"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("written")
    if request.param == "trained here":
        save_model(folder / "model", tiny.build_model(adapter_dim=4, decoder_prompt_length=3), tiny.processor())
    else:
        convert(save(folder / "x.pt", CONTENTS[request.param](state_of(build()))), folder / "model")
    convert(folder / "model", folder / "back.pt", to="fairseq")
    return request.param, folder / "back.pt"


def test_a_file_of_ours_asks_for_nothing_that_the_original_does_not_write(written: tuple[str, Path]) -> None:
    assert globals_of(written[1]) <= {
        "argparse Namespace",
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch FloatStorage",
        "torch LongStorage",
    }


def test_the_original_finds_everything_that_its_loader_looks_for(
    written: tuple[str, Path], read: Callable[[Path], dict[str, Any]]
) -> None:
    kind, path = written
    found = read(path)
    assert found["foreign"] == []
    assert found["keys"] == ["args", "cfg", "model", "criterion", "optimizer_history", "task_state", "extra_state"]
    assert found["kind"]
    assert found["optimizer"] is None
    assert all(isinstance(value, str) for value in found["history"][:2])
    assert isinstance(found["history"][2], int)
    assert isinstance(found["epoch"], int)
    assert found["tied"] == 1
    assert all(is_contiguous for _, _, is_contiguous in found["tensors"].values())
    assert found["tensors"].keys() == dict.fromkeys(original_names(read_torch_file(path).tree["model"])).keys()
    model = found["model"]
    assert (model["arch"], model["task"]) == ("unival_base", "caption")
    assert not any(model.get(name) for name in ("resnet_model_path", "video_model_path", "audio_model_path"))
    if kind != "args":  # there the original makes the groups itself
        assert set(found["leaves"]) <= {"NoneType", "bool", "int", "float", "str"}
        assert found["task"]["_name"] == "caption"
        assert found["print_alignment"] is None


def test_a_model_trained_here_names_all_its_sizes(tmp_path: Path, read: Callable[[Path], dict[str, Any]]) -> None:
    options = {"adapter_dim": 4, "adapter_per_modality": True, "decoder_prompt_length": 3, "prompt_hidden_dim": 5}
    model = tiny.build_model(**options)
    save_model(tmp_path / "model", model, tiny.processor())
    convert(tmp_path / "model", tmp_path / "x.pt", to="fairseq")
    found = read(tmp_path / "x.pt")
    assert found["task"] | {"_name": 0} == {name: found["model"][name] for name in found["task"]} | {"_name": 0}
    expected = {
        "encoder_embed_dim": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 2,
        "token_bucket_size": 8,
        "image_bucket_size": 6,
        "code_image_size": 32,
        "vocab_size": model.config.vocab_size,
        "num_bins": tiny.NUM_BINS,
        "code_dict_size": tiny.NUM_CODES,
        "max_source_positions": 64,
        "adapter": True,
        "adapter_dim": 4,
        "adapter_type": "VL",
        "encoder_prompt": False,
        "decoder_prompt": True,
        "decoder_prompt_length": 3,
        "decoder_prompt_projection": True,
        "decoder_prompt_dim": 5,
        "patch_image_size": 24,
        "num_frames": 4,
        "hop_size": 100,
        "max_audio_len": 2000,
    }
    assert {name: found["model"][name] for name in expected} == expected
    state = torch.load(tmp_path / "x.pt", weights_only=False)["model"]
    assert list(state) == original_names(model.state_dict())
