"""Every format of checkpoint is read the same, nothing in a file is run, and damage is named."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import pickle
import random
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from soups.errors import UserError
from soups.sources import read_infos
from soups.sources.unpickle import PickleError, RefusedName, parse
from soups.state import open_checkpoint

WEIGHT = torch.arange(24, dtype=torch.float32).reshape(4, 6)


def state() -> dict[str, torch.Tensor]:
    return {
        "weight": WEIGHT,
        "transposed": WEIGHT.t(),
        "rows": WEIGHT[1:3],
        "columns": WEIGHT[:, 1:3],
        "repeated": torch.ones(1).expand(5),
        "tied": WEIGHT,
        "half": torch.tensor([0.5, -1.5], dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.tensor([3.0])),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "empty": torch.empty(0, 2),
    }


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_file_of_torch_save_is_read_like_torch_reads_it(tmp_path, is_legacy, protocol):
    path = tmp_path / "model.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=not is_legacy, pickle_protocol=protocol)
    assert same(open_checkpoint(path).load(), state())
    assert open_checkpoint(path).name == "model"


WRAPPED = {
    "plain": lambda s: s,
    "ordered": lambda s: OrderedDict(s),
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
    "model": lambda s: {"model": s, "args": argparse.Namespace(lr=1e-4, tasks=["a", {"b": 1}])},
    "parallel": lambda s: {"state_dict": {f"module.{name}": tensor for name, tensor in s.items()}},
    "compiled": lambda s: {f"module._orig_mod.{name}": tensor for name, tensor in s.items()},
    "beside its accuracy": lambda s: {"state_dict": s, "best_acc1": torch.tensor(71.5), "epoch": 3},
    "beside random numbers": lambda s: {"rng": torch.zeros(8, dtype=torch.uint8), "model": s, "optimizer": {"lr": 1}},
    "beside its loss": lambda s: {"epoch": 1, "model_state_dict": s, "loss": torch.tensor(0.5, requires_grad=True)},
    "module": lambda s: {"module": s, "path": Path("runs") / "x", "numbers": {1, 2}, "size": torch.Size([2])},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
def test_the_weights_are_found_in_what_training_programs_save(tmp_path, wrap, is_legacy):
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(state()), path, _use_new_zipfile_serialization=not is_legacy)
    assert same(open_checkpoint(path).load(), state())


def test_a_parameter_may_have_the_name_of_a_place_for_weights(tmp_path):
    torch.save({"model": WEIGHT, "weights": WEIGHT + 1, "bias": WEIGHT[0]}, tmp_path / "model.pt")
    expected = {"model": WEIGHT, "weights": WEIGHT + 1, "bias": WEIGHT[0]}
    assert same(open_checkpoint(tmp_path / "model.pt").load(), expected)


@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
def test_complex_numbers_are_said_to_be_complex(tmp_path, is_legacy):
    state = {"weight": WEIGHT, "freqs_cis": torch.ones(2, dtype=torch.complex64)}
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=not is_legacy)
    where = "the file" if is_legacy else "'freqs_cis'"
    with pytest.raises(UserError, match=f"^{where} holds complex numbers, which are not supported"):
        open_checkpoint(tmp_path / "model.pt")


def test_a_module_state_dict_with_its_metadata_is_read(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert same(open_checkpoint(tmp_path / "model.pt").load(), dict(model.state_dict()))


def save_fairseq(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, torch.Tensor]]:
    """Save in the layout of fairseq, with classes of packages that the reader must not import."""
    made: dict[str, type] = {}
    config, meters = "omegaconf.dictconfig.DictConfig", "fairseq.meters.AverageMeter"
    for full in (config, meters, "fairseq.dataclass.Choice", "tasks.mm_tasks.caption.CaptionConfig"):
        module, _, name = full.rpartition(".")
        for depth in range(1, module.count(".") + 2):
            part = ".".join(module.split(".")[:depth])
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        made[name] = type(name, (dict,) if name == "DictConfig" else (), {"__module__": module})
        setattr(sys.modules[module], name, made[name])
    config, meter = made["DictConfig"](task="caption", nested={"lr": 1e-5}), made["AverageMeter"]()
    config["options"] = made["CaptionConfig"]()
    meter.sum = 3.0
    raw = {"encoder.weight": WEIGHT.half(), "encoder.version": torch.tensor([3.0])}
    ema32 = {"encoder.weight": WEIGHT + 0.1, "encoder.version": torch.tensor([3.0])}
    ema16 = {name: tensor.half() for name, tensor in ema32.items()}
    torch.save(
        {
            "args": None,
            "cfg": {"model": argparse.Namespace(arch="unival_base"), "task": config, "kind": made["Choice"]()},
            "model": raw,
            "optimizer_history": [{"num_updates": 4}],
            "extra_state": {"metrics": [meter], "ema": ema16, "ema_fp32_params": ema32},
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        },
        path,
    )
    return {"raw": raw, "ema": ema32}


def test_a_fairseq_checkpoint_is_read_raw_or_averaged_without_its_packages(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint_best.pt"
    with monkeypatch.context() as patch:
        expected = save_fairseq(path, patch)
    raw, ema = open_checkpoint(path), open_checkpoint(path, average=True)
    assert same(raw.load(), expected["raw"])
    assert same(ema.load(), expected["ema"])
    assert raw.digest != ema.digest
    assert raw.file_digests == ema.file_digests
    assert not {"fairseq", "omegaconf"} & set(sys.modules)


def test_a_moving_average_that_is_not_there_is_an_error(tmp_path):
    torch.save({"model": state(), "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"no moving average .*'model', 'epoch'"):
        open_checkpoint(tmp_path / "a.pt", average=True)
    save_file({"a": WEIGHT}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="no moving average"):
        open_checkpoint(tmp_path / "a.safetensors", average=True)


def test_bin_folders_single_and_sharded_read_as_one(tmp_path):
    whole = {"a": WEIGHT, "b": WEIGHT + 1}
    (tmp_path / "one").mkdir()
    torch.save(whole, tmp_path / "one" / "pytorch_model.bin")
    (tmp_path / "two").mkdir()
    files = {name: f"pytorch_model-0000{i}-of-00002.bin" for i, name in enumerate(whole, start=1)}
    for name, file in files.items():
        torch.save({name: whole[name]}, tmp_path / "two" / file)
    index = tmp_path / "two" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert same(open_checkpoint(tmp_path / "one").load(), whole)
    assert same(open_checkpoint(tmp_path / "two").load(), whole)
    index.write_text(json.dumps({"weight_map": files | {"ghost": files["a"]}}))
    with pytest.raises(UserError, match="the index names 1 tensors that no shard holds: ghost"):
        open_checkpoint(tmp_path / "two")
    index.write_text(json.dumps({"weight_map": {"a": "../one/pytorch_model.bin"}}))
    with pytest.raises(UserError, match=r"1 of 1 shards are missing: pytorch_model\.bin"):
        open_checkpoint(tmp_path / "two")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"epoch": 3}, "no weights in this file: it holds 'epoch'"),
        ([WEIGHT], "holds list, not a dict of tensors"),
        ({"weight": WEIGHT, "epoch": 3}, "'epoch' is no tensor, but int"),
        ({"model": {"w": WEIGHT}, "state_dict": {"w": WEIGHT}}, "several weights in this file: model, state_dict"),
        ({"w": torch.empty(2, device="meta")}, "'w' is not a plain tensor"),
        ({"w": torch._neg_view(WEIGHT)}, "'w' is not what is stored, but its negative"),
    ],
    ids=["none", "list", "mixed", "two", "meta", "negative"],
)
def test_files_without_one_set_of_weights_are_refused(tmp_path, value, match):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(UserError, match=match):
        open_checkpoint(tmp_path / "x.pt")


# --- nothing in a file is run -----------------------------------------------------------------------------------------


def program(module: str, name: str, *args: str) -> bytes:
    """Return a pickle that calls a function with texts."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(_text(arg) for arg in args) + b"tR."


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


CALLS = [
    *[("os", name) for name in ("system", "popen", "execv", "remove", "putenv")],
    *[("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("subprocess", "check_output")],
    *[("builtins", name) for name in ("eval", "exec", "compile", "open", "__import__", "setattr", "globals")],
    *[("__builtin__", "eval"), ("__main__", "Config"), ("sys", "exit"), ("shutil", "rmtree"), ("pty", "spawn")],
    *[("timeit", "timeit"), ("runpy", "run_path"), ("pip._internal", "main"), ("webbrowser", "open")],
    *[("importlib", "import_module"), ("code", "InteractiveInterpreter"), ("ctypes", "CDLL"), ("bdb", "Bdb")],
    *[("torch", "load"), ("torch.hub", "load"), ("torch.jit", "load"), ("torch.ops", "load_library")],
    *[("torch.serialization", "load"), ("torch.utils.cpp_extension", "load"), ("numpy", "load"), ("numpy", "loadtxt")],
    *[("numpy.testing._private.utils", "runstring"), ("operator", "attrgetter"), ("operator", "methodcaller")],
    *[("functools", "partial"), ("functools", "reduce"), ("types", "FunctionType"), ("types", "CodeType")],
    *[("socket", "create_connection"), ("urllib.request", "urlopen"), ("requests", "get"), ("asyncio", "run")],
    *[("multiprocessing", "Process"), ("pickle", "loads"), ("_pickle", "loads"), ("marshal", "loads")],
    *[("cloudpickle", "loads"), ("dill", "loads"), ("joblib", "load"), ("copyreg", "_reconstructor")],
    *[("logging.config", "listen"), ("cProfile", "run"), ("profile", "run"), ("pdb", "run"), ("doctest", "debug")],
]


@pytest.mark.parametrize(("module", "name"), CALLS, ids=".".join)
def test_a_call_of_anything_but_tensors_is_refused_by_name(tmp_path, module, name):
    canary = tmp_path / "canary"
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", program(module, name, f"touch {canary}"))
    with pytest.raises(UserError, match=r"asks to run .*nothing of it was run") as error:
        open_checkpoint(path)
    assert name in str(error.value)
    path.write_bytes(program(module, name, f"touch {canary}"))
    with pytest.raises(UserError, match=name):
        open_checkpoint(path)
    assert not canary.exists()


STRANGE = {
    "inst": b"(S'true'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'true'\no.",
    "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "newobj": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85\x81.",
    "build": b"\x80\x02cargparse\nNamespace\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb.",
    "memo": b"\x80\x02cos\nsystem\nq\x000h\x00X\x04\x00\x00\x00true\x85R.",
    "nested": b"\x80\x02cpickle\nloads\nB\x02\x00\x00\x00N.\x85R.",
    "python2": b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.",
}


@pytest.mark.parametrize("raw", STRANGE.values(), ids=STRANGE)
def test_other_spellings_of_a_call_are_refused_too(tmp_path, raw):
    (tmp_path / "x.pt").write_bytes(raw)
    with pytest.raises(UserError, match=r"asks to run (os\.system|pickle\.loads|builtins\.eval)"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "raw",
    [b"\x80\x02\x82\x01.", b"\x80\x02cbuiltins\ngetattr\nNNN\x87RN\x85R.", b"\x80\x02N}b.", b"\x80\x02N]\x87.", b"0."],
    ids=["extension", "call of a call", "state of nothing", "short stack", "empty stack"],
)
def test_programs_that_no_checkpoint_needs_are_errors(raw):
    with pytest.raises(PickleError):
        parse(io.BytesIO(raw), lambda name: True)


def test_no_text_is_made_of_nested_values(tmp_path):
    """Each of these files has some hundred bytes; the text that they ask for has 2 ** 60."""
    bomb, storage = b")" + b"2\x86" * 60, b"ctorch\nFloatStorage\n"
    tag, device = _text("storage"), _text("cpu")
    persistent = {
        "kind": b"(" + bomb + storage + _text("0") + device + b"K\x01tQ",
        "key": b"(" + tag + storage + bomb + device + b"K\x01tQ",
        "whole": b"(" + tag + storage + _text("0") + device + b"K\x01tQ",
    }
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    for name, reference in persistent.items():
        shape = bomb + b"\x85" if name == "whole" else b"K\x01\x85"
        tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + b"K\x00" + shape + b"K\x01\x85\x89NtR"
        raw = b"\x80\x02}" + _text("w") + tensor + b"s."
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            archive.writestr("x/data.pkl", raw)
        (tmp_path / "y.pt").write_bytes(head + raw + pickle.dumps(["0"], 2))
        for path in (tmp_path / "x.pt", tmp_path / "y.pt"):
            with pytest.raises(UserError, match="corrupt"):
                open_checkpoint(path)
    for raw in (bomb + _text("x") + b"\x93.", b"}" + bomb + b"\x85N" + b"s."):
        with contextlib.suppress(PickleError):
            parse(io.BytesIO(b"\x80\x04" + raw), lambda name: True)


def test_shared_items_are_not_copied_for_ever(monkeypatch):
    monkeypatch.setattr("soups.sources.unpickle.MAX_OPCODES", 1000)
    shared = b"\x80\x02](" + b"N" * 100 + b"NNe" + b"q\x00ccollections\nOrderedDict\n"
    pairs = b"\x80\x02](" + b"](NNe" * 100 + b"eq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 20 + b"."
    for raw in (shared + b"](" + b"h\x00" * 100 + b"e\x85R.", pairs):
        with pytest.raises(PickleError):
            parse(io.BytesIO(raw), lambda name: True)


def test_allowed_names_are_records_and_import_nothing():
    before = set(sys.modules)
    value = parse(io.BytesIO(program("fairseq.dataclass", "Gone", "x")), lambda name: True)
    assert (value.name, value.args) == ("fairseq.dataclass.Gone", ("x",))
    assert set(sys.modules) == before
    with pytest.raises(RefusedName, match=r"fairseq\.dataclass\.Gone"):
        parse(io.BytesIO(program("fairseq.dataclass", "Gone", "x")), lambda name: False)


def rewritten(path: Path, change) -> None:
    """Write a zip again, entry by entry, with another list of (name, bytes)."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(entries):
            archive.writestr(name, data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "change",
    [
        lambda entries: [*entries, ("other/data.pkl", b"N.")],
        lambda entries: [*entries, entries[0]],
        lambda entries: [entry for entry in entries if not entry[0].endswith("/0")],
        lambda entries: [(name, data[:8] if name.endswith("/0") else data) for name, data in entries],
        lambda entries: [(name, data[:-4] if name.endswith("data.pkl") else data) for name, data in entries],
        lambda entries: [(name, b"big" if name.endswith("byteorder") else data) for name, data in entries],
        lambda entries: [*entries, (entries[0][0].replace("data.pkl", "constants.pkl"), b"N.")],
    ],
    ids=["two pickles", "repeated", "no storage", "short storage", "short pickle", "big-endian", "TorchScript"],
)
def test_damaged_zips_are_refused(tmp_path, change):
    torch.save({"w": WEIGHT}, tmp_path / "x.pt")
    rewritten(tmp_path / "x.pt", change)
    with pytest.raises(UserError, match=r"corrupt|big-endian|TorchScript"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
def test_every_cut_of_a_file_is_refused(tmp_path, is_legacy):
    path = tmp_path / "x.pt"
    torch.save({"w": WEIGHT, "v": WEIGHT + 1}, path, _use_new_zipfile_serialization=not is_legacy)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 37), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"corrupt|not a file of torch\.save"):
            open_checkpoint(path)


def test_random_damage_gives_our_error_or_a_readable_checkpoint(tmp_path):
    path, draw = tmp_path / "x.pt", random.Random(0)
    for is_legacy in (False, True):
        torch.save(state(), path, _use_new_zipfile_serialization=not is_legacy)
        whole = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(draw.randint(1, 8)):
                damaged[draw.randrange(min(len(damaged), 3000))] = draw.randrange(256)
            path.write_bytes(damaged)
            try:
                infos = read_infos(path)
            except UserError:
                continue
            assert all(info.offset + info.extent <= len(damaged) for info in infos.values())


def test_random_damage_of_a_safetensors_header_is_judged_like_the_library_does(tmp_path):
    path, draw = tmp_path / "x.safetensors", random.Random(0)
    save_file({"a": WEIGHT, "b": torch.ones(3, dtype=torch.float16), "n": torch.tensor(3)}, path)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    num_accepted = 0
    for _ in range(600):
        damaged = bytearray(whole)
        damaged[draw.randrange(header)] = draw.randrange(32, 127)
        path.write_bytes(damaged)
        try:
            infos = read_infos(path)
        except UserError:
            continue
        num_accepted += 1
        with safe_open(path, framework="pt") as file:  # what we accept, the reference reads the same
            assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118
                name: info.shape for name, info in infos.items()
            }
    assert num_accepted > 0


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        '{"a":{"dtype":"F32","shape":[9223372036854775807,9223372036854775807],"data_offsets":[0,16]}}',
        '{"a":{"dtype":"F32","shape":[-2,-2],"data_offsets":[0,16]}}',
        '{"a":{"dtype":"F32","shape":[true,4],"data_offsets":[0,16]}}',
        '{"a":{"dtype":"F32","shape":[' + "1," * 100 + '4],"data_offsets":[0,16]}}',
    ],
    ids=["overlap", "hole", "repeated", "overflow", "negative", "boolean", "axes"],
)
def test_impossible_safetensors_headers_are_refused(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(16))
    with pytest.raises(UserError, match="corrupt"):
        open_checkpoint(path)
    if "1,1,1" not in header:  # the library has no limit of axes
        with pytest.raises(SafetensorError), safe_open(path, framework="pt") as file:
            file.get_tensor("a")


def test_a_checkpoint_of_the_original_trainer_is_read(tmp_path):
    golden = os.environ.get("UNIVAL_GOLDEN")
    if not golden:
        pytest.skip("set UNIVAL_GOLDEN to the folder of reference outputs")
    infos = read_infos(Path(golden) / "tiny_checkpoint.pt")
    assert infos["encoder.token_rp_bucket"].shape == (1024, 1024)
    assert infos["encoder.version"].dtype == "F32"


def test_reading_headers_imports_no_torch(tmp_path):
    torch.save(state(), tmp_path / "x.pt")
    code = (
        "import sys; from pathlib import Path; from soups.state import open_checkpoint\n"
        f"open_checkpoint(Path({str(tmp_path / 'x.pt')!r}))\nsys.exit('torch' in sys.modules)"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
    assert importlib.util.find_spec("soups") is not None
