"""Pickled checkpoints are read as data: right values out of good files, nothing run out of bad ones."""

import argparse
import collections
import datetime
import enum
import io
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Dict, Optional, Union  # noqa: UP035 - what old files hold

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unival.errors import UserError
from unival.pickles import machine, values
from unival.pickles.machine import Machine
from unival.pickles.torch_file import StoredTensor, read_torch_file
from unival.pickles.values import plain


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *args: str, how: str = "REDUCE") -> bytes:
    """Return operations that call `module.name` with texts."""
    arguments = b"(" + b"".join(map(text, args)) + b"t"
    if how == "STACK_GLOBAL":
        return text(module) + text(name) + b"\x93" + arguments + b"R"
    if how == "NEWOBJ":
        return f"c{module}\n{name}\n".encode() + arguments + b"\x81"
    if how == "INST":
        return b"(" + b"".join(map(text, args)) + f"i{module}\n{name}\n".encode()
    if how == "OBJ":
        return b"(" + f"c{module}\n{name}\n".encode() + b"".join(map(text, args)) + b"o"
    return f"c{module}\n{name}\n".encode() + arguments + b"R"


def write_zip(path: Path, pickled: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return path


def read_bytes(data: bytes) -> Any:
    return Machine("a test").load(io.BytesIO(data))


RUN = "touch {canary}"
PYTHON = "open({canary!r}, 'w').close()"
DANGEROUS: list[tuple[str, str, tuple[str, ...]]] = [
    ("os", "system", (RUN,)),
    ("posix", "system", (RUN,)),
    ("nt", "system", (RUN,)),
    ("os", "popen", (RUN,)),
    ("os", "execlp", ("touch", "touch", "{canary}")),
    ("os", "spawnlp", (RUN,)),
    ("os", "mkdir", ("{canary}",)),
    ("os", "remove", ("{canary}",)),
    ("subprocess", "Popen", (RUN,)),
    ("subprocess", "run", (RUN,)),
    ("subprocess", "check_output", (RUN,)),
    ("subprocess", "getoutput", (RUN,)),
    ("builtins", "eval", (PYTHON,)),
    ("builtins", "exec", (PYTHON,)),
    ("builtins", "compile", (PYTHON, "x", "exec")),
    ("builtins", "open", ("{canary}", "w")),
    ("builtins", "__import__", ("os",)),
    ("builtins", "getattr", ("os", "system")),
    ("builtins", "setattr", ("os", "system", "x")),
    ("builtins", "breakpoint", ()),
    ("builtins", "input", ()),
    ("builtins", "map", ()),
    ("builtins", "globals", ()),
    ("__builtin__", "eval", (PYTHON,)),
    ("__builtin__", "file", ("{canary}", "w")),
    ("io", "open", ("{canary}", "w")),
    ("_io", "FileIO", ("{canary}", "w")),
    ("pathlib", "Path.touch", ("{canary}",)),
    ("pathlib", "Path.__subclasses__", ()),
    ("timeit", "timeit", (PYTHON,)),
    ("timeit", "Timer", (PYTHON,)),
    ("runpy", "run_path", ("{canary}",)),
    ("runpy", "_run_code", (PYTHON,)),
    ("pip", "main", ("install",)),
    ("pip._internal", "main", ("install",)),
    ("pty", "spawn", ("{canary}",)),
    ("webbrowser", "open", ("http://localhost",)),
    ("code", "interact", ()),
    ("pdb", "run", (PYTHON,)),
    ("cProfile", "run", (PYTHON,)),
    ("profile", "run", (PYTHON,)),
    ("bdb", "Bdb.run", (PYTHON,)),
    ("trace", "Trace.run", (PYTHON,)),
    ("doctest", "debug_script", (PYTHON,)),
    ("ctypes", "CDLL", ("libc.so.6",)),
    ("importlib", "import_module", ("os",)),
    ("imp", "load_source", ("x", "{canary}")),
    ("pickle", "loads", ("x",)),
    ("_pickle", "loads", ("x",)),
    ("marshal", "loads", ("x",)),
    ("types", "CodeType", ()),
    ("types", "FunctionType", ()),
    ("functools", "partial", ("x",)),
    ("functools", "reduce", ("x",)),
    ("operator", "attrgetter", ("system",)),
    ("operator", "methodcaller", ("system", RUN)),
    ("operator", "call", ()),
    ("shutil", "rmtree", ("{canary}",)),
    ("shutil", "copyfile", ("/etc/passwd", "{canary}")),
    ("socket", "create_connection", ("localhost",)),
    ("urllib.request", "urlopen", ("http://localhost",)),
    ("torch", "load", ("{canary}",)),
    ("torch.hub", "load", ("{canary}",)),
    ("torch.storage", "_load_from_bytes", ("x",)),
    ("torch._utils", "_rebuild_device_tensor_from_numpy", ()),
    ("torch.jit", "load", ("{canary}",)),
    ("torch.utils.collect_env", "run", (RUN,)),
    ("torch._dynamo.guards", "GuardBuilder.get", (PYTHON,)),
    ("numpy", "load", ("{canary}",)),
    ("numpy", "loadtxt", ("{canary}",)),
    ("numpy.testing._private.utils", "runstring", (PYTHON,)),
    ("fairseq.tasks", "setup_task", ()),
    ("fairseq.dataclassx", "x", ()),
    ("argparse", "FileType", ("{canary}",)),
    ("argparse", "Namespace.__init__.__globals__", ()),
    ("collections", "OrderedDict.__init__", ()),
    ("codecs", "open", ("{canary}", "w")),
    ("multiprocessing.util", "spawnv_passfds", ()),
    ("logging.config", "listen", ()),
]


@pytest.mark.parametrize(("module", "name", "args"), DANGEROUS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_dangerous_name_is_refused_by_its_name_and_not_run(
    tmp_path: Path, module: str, name: str, args: tuple[str, ...]
) -> None:
    canary = tmp_path / "canary"
    filled = [arg.format(canary=str(canary)) for arg in args]
    for how in ("REDUCE", "STACK_GLOBAL", "NEWOBJ", "INST", "OBJ"):
        operations = call(module, name, *filled, how=how)
        path = write_zip(tmp_path / f"{how}.pt", b"\x80\x04" + operations + b".")
        with pytest.raises(UserError, match="refused") as caught:
            read_torch_file(path)
        assert f"{values.path_of(module, name)}" in str(caught.value) or f"{module}.{name}" in str(caught.value)
        assert str(path) in str(caught.value)
    assert not canary.exists()


def wrappings(attack: bytes) -> dict[str, bytes]:
    """Return pickles that hide an attack in different places."""
    empty = b"}"
    return {
        "in a list": b"](" + attack + b"e.",
        "as a value": b"}(" + text("model") + attack + b"u.",
        "as a key": b"}(" + attack + text("x") + b"u.",
        "deep": b"]" * 50 + attack + b"a" * 50 + b".",
        "after memo tricks": b"q\x00" + b"0" + attack + b"." if False else empty + b"q\x000" + attack + b"h\x000.",
        "dropped again": attack + b"0" + empty + b".",
        "as a state": b"cargparse\nNamespace\n)\x81" + attack + b"b.",
        "as an argument": b"ccollections\nOrderedDict\n(" + attack + b"tR.",
        "before the mark": attack + b"(1}.",
        "in a frame": b"\x95" + struct.pack("<Q", len(attack)) + attack + b".",
    }


@pytest.mark.parametrize("place", list(wrappings(b"")))
@pytest.mark.parametrize("container", ["zip", "legacy", "legacy header", "bare", "renamed"])
def test_an_attack_is_found_wherever_it_hides(tmp_path: Path, place: str, container: str) -> None:
    canary = tmp_path / "canary"
    pickled = b"\x80\x04" + wrappings(call("posix", "system", f"touch {canary}"))[place]
    path = tmp_path / ("x.safetensors.pt" if container == "renamed" else "x.pt")
    if container == "zip":
        write_zip(path, pickled)
    elif container == "legacy":
        head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        path.write_bytes(b"".join(head) + pickled)
    elif container == "legacy header":
        path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickled)
    else:
        path.write_bytes(pickled)
    with pytest.raises(UserError, match=r"posix\.system"):
        read_torch_file(path)
    assert not canary.exists()


def test_extension_codes_and_calls_of_mentioned_types_are_refused() -> None:
    for code in (b"\x82\x01.", b"\x83\x01\x00.", b"\x84\x01\x00\x00\x00.", b"P1\n.", b"\x97."):
        with pytest.raises(UserError, match="refused"):
            read_bytes(b"\x80\x04" + code)
    with pytest.raises(UserError, match=r"refused.*builtins\.int\(\)"):
        read_bytes(b"\x80\x02c__builtin__\nint\n(K\x01tR.")


def test_a_real_exploit_written_by_python_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Exploit:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (f"open({str(canary)!r}, 'w').close()",)

    for is_zip in (True, False):
        torch.save({"model": Exploit()}, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
        with pytest.raises(UserError, match=r"builtins\.exec"):
            read_torch_file(tmp_path / "x.pt")
    assert not canary.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert canary.exists()  # the file is what it should be


def test_archives_that_are_not_from_torch_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        archive.writestr("b/data.pkl", b"\x80\x02N.")
    with pytest.raises(UserError, match="2 entries"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"N0" * 10000 + b"N.")
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(path)
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("pickle"))
    with pytest.raises(UserError, match="not a file of torch"):
        read_torch_file(path)
    with pytest.raises(UserError, match="cannot read"):
        read_torch_file(tmp_path / "absent.pt")
    write_zip(path, b"\x80\x02N.", byteorder=b"big   ")
    with pytest.raises(UserError, match="big-endian"):
        read_torch_file(path)


def test_limits_hold_against_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    bombs = {
        "an item of 9223372036854775807 bytes": b"\x8e" + struct.pack("<Q", 2**63 - 1),
        "a number of 401": b"\x8b" + struct.pack("<I", 51) + b"\xff" * 50 + b"\x01.",
        "as a key": b"}" + b")\x85\x85\x85\x85" + b"Ns.",
        "a huge number as a key": b"}\x8a\x0a" + b"\xff" * 9 + b"\x01Ns.",
        "a mark where": b"(.",
        "it ends too early|exhausted": b"]",
        "IndexError": b"0.",
        "KeyError": b"h\x07.",
        "cannot be filled": b"NNa.",
        "a call of a str": text("x") + b")R.",
        "a persistent id": b"NQ.",
        "encoding": b"c_codecs\nencode\n(" + text("x") + text("rot13") + b"tR.",
    }
    for message, code in bombs.items():
        with pytest.raises(UserError, match=message):
            read_bytes(b"\x80\x04" + code)
    monkeypatch.setattr(machine, "MAX_OPERATIONS", 1000)
    with pytest.raises(UserError, match="more than 1000 operations"):
        read_bytes(b"\x80\x04" + b"N0" * 1000 + b"N.")
    monkeypatch.setattr(machine, "MAX_COPIES", 1000)
    monkeypatch.setattr(machine, "MAX_OPERATIONS", 100_000)
    copies = b"](" + b"N" * 100 + b"eq\x00" + b"c__builtin__\nlist\nh\x00\x85R" * 20
    with pytest.raises(UserError, match="more than 1000 copied"):
        read_bytes(b"\x80\x04" + copies + b".")


def doubled(num: int) -> bytes:
    """Return operations for nested pairs whose text has 2 ** `num` parts."""
    return b")" + b"2\x86" * num


def write_legacy(path: Path, *pickles: bytes) -> Path:
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"".join(pickles))
    return path


DTYPE = b"cnumpy\ndtype\n" + doubled(60) + b"\x85R"
TEXT_BOMBS = {
    "a path": b"cpathlib\nPosixPath\n" + doubled(60) + b"\x85R",
    "a device": b"ctorch\ndevice\n" + doubled(60) + b"\x85R",
    "a dtype": b"cnumpy.core.multiarray\nscalar\n" + DTYPE + b"C\x08abcdefgh\x86R",
    "an encoding": b"c_codecs\nencode\n" + text("x") + doubled(60) + b"\x86R",
    "a key": b"(" + text("storage") + b"ctorch\nFloatStorage\n" + doubled(60) + text("cpu") + b"K\x01tQ",
    "a size": b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + doubled(60) + b"tQ",
}


@pytest.mark.parametrize("bomb", TEXT_BOMBS.values(), ids=TEXT_BOMBS)
def test_no_text_is_made_of_nested_values(tmp_path: Path, bomb: bytes) -> None:
    """Each of these files has some hundred bytes; the text that they ask for has 2 ** 60."""
    pickled = b"\x80\x04" + bomb + b"."
    head = pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    for path in (write_zip(tmp_path / "x.pt", pickled), write_legacy(tmp_path / "y.pt", head, pickled)):
        with pytest.raises(UserError, match="truncated or corrupt"):
            read_torch_file(path)


def test_no_text_is_made_of_the_head_and_the_keys_of_an_old_file(tmp_path: Path) -> None:
    bomb, empty = b"\x80\x02" + doubled(60) + b".", pickle.dumps({}, 2)
    head = pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    for parts in ([bomb, empty], [head, empty, b"\x80\x02](" + doubled(60) + b"e."]):
        with pytest.raises(UserError, match="truncated or corrupt"):
            read_torch_file(write_legacy(tmp_path / "x.pt", *parts))


def test_deep_values_are_refused_in_both_formats(tmp_path: Path) -> None:
    pickled = b"\x80\x02cpathlib\nPosixPath\n)" + b"\x85" * 100_000 + b"\x85R."
    head = pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    for path in (write_zip(tmp_path / "x.pt", pickled), write_legacy(tmp_path / "y.pt", head, pickled)):
        with pytest.raises(UserError, match="truncated or corrupt"):
            read_torch_file(path)


def test_a_configuration_repeats_no_long_text() -> None:
    long = "x" * 100_000
    with pytest.raises(ValueError, match="too large"):
        plain([long] * 1000)
    for shared in ({(long,) * 8: 1}, {1: {(long, long)}}):
        with pytest.raises(ValueError, match="as a key"):
            plain(shared)
    assert plain({1: "a", None: 2.5, "set": {3, "b"}}) == {"1": "a", "None": 2.5, "set": [3, "b"]}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
        max_leaves=20,
    ),
    st.integers(0, 4),
)
def test_plain_values_come_out_as_they_went_in(value: Any, protocol: int) -> None:
    assert read_bytes(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_scripts_store_beside_the_weights_is_passed_over(tmp_path: Path, legacy: bool) -> None:
    beside = {
        "numpy": np.random.RandomState(0).get_state(),
        "history": np.arange(6.0).reshape(2, 3),
        "names": np.array(["a", "b"]),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "when": datetime.datetime(2026, 11, 23, 4, 5),
        "best": np.float64(1.5),
    }
    path = tmp_path / "x.pt"
    torch.save(
        {"model": {"w": torch.ones(2, 3)}, "extra_state": beside}, path, _use_new_zipfile_serialization=not legacy
    )
    tree = read_torch_file(path).tree
    assert tree["model"]["w"].shape == (2, 3)
    assert tree["extra_state"]["best"] == 1.5
    assert [tree["extra_state"]["numpy"][1].kind, tree["extra_state"]["history"].kind] == ["numpy.ndarray"] * 2


def test_containers_come_out_as_plain_values() -> None:
    value = {
        "set": {1, 2},
        "frozen": frozenset({3}),
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, b=[2]),
        "complex": 1 + 2j,
        "bytes": b"\x00\xff",
        "array": bytearray(b"\x01"),
        "float": np.float64(0.5),
        "half": np.float32(0.25),
        "long": np.int64(-3),
        "bool": np.bool_(True),
        "path": Path("a/b"),
        "absolute": Path("/a/b"),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
    }
    expected = value | {"path": "a/b", "absolute": "/a/b", "size": (2, 3), "device": "cpu"}
    for protocol in (2, 3, 4):
        assert read_bytes(pickle.dumps(value, protocol)) == expected


def stand_in(monkeypatch: pytest.MonkeyPatch, path: str, base: type = object) -> Any:
    """Make a class that pickles under a name of a package that is not installed."""
    module_name, _, name = path.rpartition(".")
    parts = module_name.split(".")
    for parent in (".".join(parts[:length]) for length in range(1, len(parts))):
        if parent not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    made = type(name, (base,), {"__module__": module_name, "__qualname__": name})
    module = sys.modules.get(module_name) or types.ModuleType(module_name)
    setattr(module, name, made)
    monkeypatch.setitem(sys.modules, module_name, module)
    return made


def dict_config(monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]) -> Any:
    """Build what OmegaConf 2.1 pickles for a configuration: nodes with metadata, parents, type hints."""
    config = stand_in(monkeypatch, "omegaconf.dictconfig.DictConfig")
    sequence = stand_in(monkeypatch, "omegaconf.listconfig.ListConfig")
    fixed = stand_in(monkeypatch, "omegaconf.tupleconfig.TupleConfig")  # since 2.4
    node = stand_in(monkeypatch, "omegaconf.nodes.AnyNode")
    metadata = stand_in(monkeypatch, "omegaconf.base.ContainerMetadata")

    def wrap(value: Any, parent: Any) -> Any:
        made = {dict: config, list: sequence, tuple: fixed}.get(type(value), node)()
        about = metadata()
        about.__dict__.update(
            ref_type=Optional[Any],  # noqa: UP045 - as in Python 3.7
            object_type=type(value),
            key_type=str,
            element_type=Union[int, Dict[str, Any]],  # noqa: UP006, UP007
            resolver_cache=collections.defaultdict(dict),
        )
        made.__dict__.update(_metadata=about, _parent=parent, _flags_cache=None)
        if isinstance(value, dict):
            made.__dict__["_content"] = {key: wrap(item, made) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            made.__dict__["_content"] = [wrap(item, made) for item in value]
        else:
            made.__dict__["_val"] = value
        return made

    return wrap(content, None)


def test_configurations_of_omegaconf_become_dictionaries(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"arch": "unival_base", "lr": [1e-5, 2e-5], "path": None, "betas": (0.9, 0.999)}
    content: dict[str, Any] = {"model": model, "task": {"num_bins": 1000}}
    with monkeypatch.context() as patch:
        pickled = {protocol: pickle.dumps(dict_config(patch, content), protocol) for protocol in range(5)}
    assert "omegaconf.dictconfig" not in sys.modules
    content["model"]["betas"] = [0.9, 0.999]
    for data in pickled.values():
        assert plain(read_bytes(data)) == content
    assert not any(name.startswith("omegaconf") for name in sys.modules)


@pytest.mark.parametrize(
    "path",
    [
        *("tasks.mm_tasks.caption.CaptionConfig", "fairseq.optim.adam.FairseqAdamConfig"),
        *("criterions.label_smoothed_cross_entropy.AdjustLabelSmoothedCrossEntropyCriterionConfig",),
        *("models.unival.UnivalConfig", "unival_module.tasks.TaskConfig"),
    ],
)
def test_option_classes_of_the_original_are_held_and_not_imported(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    with monkeypatch.context() as patch:
        made = stand_in(patch, path)
        config = dict_config(patch, {"num_bins": 7})
        config._metadata.object_type = made  # a structured configuration names its class
        instance = made()
        instance.lr = 0.5
        data = [pickle.dumps([config, instance], protocol) for protocol in (0, 2, 4)]
    module = path.rpartition(".")[0]
    assert module not in sys.modules
    for pickled in data:
        assert plain(read_bytes(pickled)) == [{"num_bins": 7}, {"lr": 0.5}]
    for parent, name in ((module, "setup"), (module, "Config.load"), ("os", path)):
        with pytest.raises(UserError, match="refused"):
            read_bytes(b"\x80\x02" + call(parent, name) + b".")


def test_option_classes_and_enumerations_become_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        options = stand_in(patch, "fairseq.dataclass.configs.CommonConfig")()
        options.__dict__.update(seed=7, fp16=True)
        module = sys.modules["fairseq.dataclass.configs"]
        choice = enum.Enum("Choice", {"no_c10d": "no_c10d"}, module="fairseq.dataclass.configs")
        module.Choice = choice  # pyright: ignore[reportAttributeAccessIssue]
        space = argparse.Namespace(common=options, backend=choice.no_c10d, hints=int | None and list)
        data = [pickle.dumps(space, protocol) for protocol in (0, 2, 4)]
    assert "fairseq.dataclass.configs" not in sys.modules
    for pickled in data:
        assert plain(read_bytes(pickled)) == {
            "common": {"seed": 7, "fp16": True},
            "backend": "no_c10d",
            "hints": None,
        }


def test_a_cyclic_configuration_is_refused_and_not_followed_for_ever() -> None:
    cyclic = read_bytes(b"\x80\x02]q\x00h\x00a.")
    with pytest.raises(ValueError, match="too deep"):
        plain(cyclic)
    laughs = b"\x80\x02]q\x00" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(8)) + b"."
    with pytest.raises(ValueError, match="too large"):
        plain(read_bytes(laughs))


# --- files ------------------------------------------------------------------------------------------------------------


def sample_state() -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    return {
        "float": torch.randn(3, 5),
        "half": torch.randn(4).half(),
        "bfloat": torch.randn(4).bfloat16(),
        "double": torch.randn(2).double(),
        "long": torch.arange(7),
        "int": torch.arange(3, dtype=torch.int32),
        "byte": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "base": base,
        "transposed": base.T,
        "row": base[2],
        "spread": base[:, 1].unsqueeze(1).expand(6, 3),
        "parameter": torch.nn.Parameter(base),
    }


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_tensors_of_every_kind_come_out_equal(tmp_path: Path, is_zip: bool) -> None:
    state = collections.OrderedDict(sample_state())
    state._metadata = {"": {"version": 1}}  # pyright: ignore[reportAttributeAccessIssue]
    torch.save({"model": state, "epoch": 3}, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
    file = read_torch_file(tmp_path / "x.pt")
    assert file.kind == ("zip" if is_zip else "legacy")
    read = file.tree["model"]
    assert list(read) == list(state)
    assert read._metadata == {"": {"version": 1}}
    for name, stored in read.items():
        loaded = stored.load()
        assert loaded.dtype == state[name].dtype
        assert loaded.stride() == state[name].stride()
        assert torch.equal(loaded, state[name])
    assert read["base"].storage is read["row"].storage
    one, other = read["base"].load(), read["parameter"].load()
    assert one.data_ptr() == other.data_ptr()  # tied tensors stay tied
    one[0, 0] = 9.0  # changes stay in memory
    assert read_torch_file(tmp_path / "x.pt").tree["model"]["base"].load()[0, 0] != 9.0


def load_all(path: Path) -> dict[str, torch.Tensor]:
    return {name: stored.load() for name, stored in read_torch_file(path).tree.items()}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.randn(10), "b": torch.arange(10)}, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            load_all(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError):
        load_all(path)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_flipped_bit_is_an_error_or_without_effect(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "x.pt"
    state = {"a": torch.randn(10), "b": torch.arange(10)}
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for position in generator.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            loaded = load_all(path)
        except UserError:
            refused += 1
            continue
        except AttributeError:  # a leaf is no tensor any more: for the caller to see
            assert not is_zip
            continue
        if is_zip:  # the legacy format has no checksums
            assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
                name: tensor.tolist() for name, tensor in state.items()
            }
    assert refused > 50


def patched(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Rewrite data.pkl of an archive, with right checksums."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return path


def test_a_tensor_beyond_its_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(7)}, path)
    with pytest.raises(UserError, match="beyond the end of its data"):
        read_torch_file(patched(path, lambda data: data.replace(b"K\x07\x85", b"K\x08\x85")))
    torch.save({"a": torch.zeros(7)}, path)
    with pytest.raises(UserError, match="have 28 bytes"):
        read_torch_file(patched(path, lambda data: data.replace(b"K\x07t", b"K\x09t")))
    torch.save({"a": torch.zeros(1).expand(1000, 1000, 1000)}, path)
    with pytest.raises(UserError, match="times the size of the file"):
        read_torch_file(path)


def test_a_wrong_checksum_of_tensor_data_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.full((50,), 0.5)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(struct.pack("<f", 0.5), struct.pack("<f", 0.75), 1))
    stored = read_torch_file(path).tree["a"]
    assert isinstance(stored, StoredTensor)
    with pytest.raises(UserError, match="checksum"):
        stored.load()


@pytest.mark.parametrize("legacy", [False, True])
def test_numbers_that_are_not_those_stored_are_refused(tmp_path: Path, legacy: bool) -> None:
    torch.save({"w": torch._neg_view(torch.ones(2))}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="its negative or conjugate"):
        read_torch_file(tmp_path / "x.pt")
