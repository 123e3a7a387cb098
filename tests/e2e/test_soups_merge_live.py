"""The mixture in memory is the mixture on disk, whatever the layout, the threads and the device of the live model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from soups import methods
from soups.engine.live import LiveSoup
from soups.errors import UserError
from soups.merge import merge
from soups.methods import get_method
from soups.state import open_checkpoint, reopen
from soups.sweep import Sweep

POINTS = [(1.0, 0.0), (0.3, 0.7), (0.0, 1.0)]


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(40, 30, generator=generator),
        "half": torch.randn(70, generator=generator).to(torch.bfloat16),
        "scalar": torch.randn((), generator=generator),
        "steps": torch.tensor(3),
    }


def make_sweep(folder, method="linear", **options) -> Sweep:
    for seed in range(2):
        save_file(tensors(seed), folder / f"{seed}.safetensors")
    checkpoints = [open_checkpoint(folder / f"{seed}.safetensors") for seed in range(2)]
    return Sweep(checkpoints, get_method(method), "none:none", **options)


def blank(device: str = "cpu") -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor).to(device) for name, tensor in tensors(0).items()}


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize("piece", [1 << 16, 7])
def test_every_point_in_memory_has_the_bytes_of_the_merge_on_disk(tmp_path, monkeypatch, method, piece):
    monkeypatch.setattr(methods, "CHUNK_ELEMENTS", piece)
    sweep, live = make_sweep(tmp_path, method), blank()
    soup = LiveSoup(sweep, live)
    for number, point in enumerate(POINTS):
        soup.write(point)
        merge(sweep.recipe(point), tmp_path / f"out{number}")
        expected = load_file(tmp_path / f"out{number}" / "model.safetensors")
        assert all(torch.equal(live[name], expected[name]) for name in expected)
    assert all(torch.equal(live[name], tensor) for name, tensor in tensors(1).items())


def test_a_live_model_may_have_another_dtype_and_layout(tmp_path):
    live = blank() | {"weight": torch.zeros(30, 40, dtype=torch.float64).t(), "half": torch.zeros(70)}
    LiveSoup(make_sweep(tmp_path), live).write((0.3, 0.7))
    for name in ("weight", "half"):
        expected = 0.3 * tensors(0)[name].double() + 0.7 * tensors(1)[name].double()
        torch.testing.assert_close(live[name].double(), expected, rtol=2**-23, atol=1e-12)


def test_writing_leaves_the_checkpoints_and_the_graph_alone(tmp_path):
    live = blank()
    live["weight"] = torch.nn.Parameter(live["weight"])
    soup = LiveSoup(make_sweep(tmp_path), live)
    for point in (POINTS[1], POINTS[0]):
        soup.write(point)
    assert torch.equal(live["weight"].detach(), tensors(0)["weight"])
    assert live["weight"].grad_fn is None


def test_integers_that_differ_are_found_before_the_first_evaluation(tmp_path):
    sweep = make_sweep(tmp_path)
    save_file(tensors(1) | {"steps": torch.tensor(9)}, tmp_path / "1.safetensors")
    odd = [sweep.checkpoints[0], open_checkpoint(tmp_path / "1.safetensors")]
    with pytest.raises(UserError, match="steps"):
        LiveSoup(Sweep(odd, sweep.method, "none:none"), blank())
    live = blank()
    soup = LiveSoup(Sweep(odd, sweep.method, "none:none", integers="first"), live)
    soup.write((0.5, 0.5))
    assert live["steps"].item() == 3
    soup.write((0.0, 1.0))
    assert live["steps"].item() == 9


def test_adapters_share_the_memory_of_their_base_and_mix_exactly(tmp_path):
    base = {"a.weight": torch.randn(6, 4), "b.weight": torch.randn(5, 5)}
    save_file(base, tmp_path / "base.safetensors")
    low = []
    for name in "xy":
        folder = tmp_path / name
        folder.mkdir()
        low.append({"A": torch.randn(2, 4), "B": torch.randn(6, 2)})
        stored = {f"base_model.model.a.lora_{side}.weight": tensor for side, tensor in low[-1].items()}
        save_file(stored, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 2}))
    under = open_checkpoint(tmp_path / "base.safetensors")
    checkpoints = [open_checkpoint(tmp_path / name, adapter_base=under) for name in "xy"]
    live = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    soup = LiveSoup(Sweep(checkpoints, get_method("linear"), "none:none"), live)
    first, second = soup._states
    assert first["b.weight"] is second["b.weight"]
    assert first["a.weight"] is not second["a.weight"]
    soup.write((0.25, 0.75))
    update = sum(w * (each["B"].double() @ each["A"].double()) for w, each in zip((0.25, 0.75), low, strict=True))
    torch.testing.assert_close(live["a.weight"], (base["a.weight"].double() + update).float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(live["b.weight"], base["b.weight"])
    described = json.loads(json.dumps(checkpoints[0].described()))
    assert reopen(described).digest == checkpoints[0].digest
    save_file({name: tensor + 1 for name, tensor in base.items()}, tmp_path / "base.safetensors")
    with pytest.raises(UserError, match="this checkpoint has changed"):
        reopen(described)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_gets_the_bytes_of_the_cpu(tmp_path):
    sweep, there, here = make_sweep(tmp_path), blank("cuda"), blank()
    soups = [LiveSoup(sweep, live) for live in (there, here)]
    for point in POINTS:
        for soup in soups:
            soup.write(point)
        assert all(torch.equal(there[name].cpu(), here[name]) for name in here)
