"""Fisher diagonals and Gram matrices: closed forms, and merges that use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from soups.cli import app
from soups.errors import UserError
from soups.search.learn import Objective
from soups.statistics import measure

ME = __name__
INPUTS = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])


class Tied(nn.Module):
    """A linear layer under two names, batch statistics that no gradient reaches, and a layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 1, bias=False)
        self.again = self.first
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.unused = nn.Linear(2, 1, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.first(inputs)


def objective(checkpoint_path: Path, samples: int = 3) -> Objective:
    batches = [INPUTS[i : i + 1] for i in range(samples)]
    return Objective(Tied(), batches, lambda call, batch: call(batch).square().sum() / 2)


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return Tied().state_dict()


def test_fisher_is_the_mean_of_squared_gradients_per_batch():
    given = objective(Path())
    weight = given.model.state_dict()["first.weight"]
    found = measure(given, "fisher")
    gradients = torch.stack([(weight @ x) * x for x in INPUTS])  # of (w x)^2 / 2
    torch.testing.assert_close(found["first.weight"], gradients.square().mean(dim=0)[None])
    assert found["again.weight"].equal(found["first.weight"])
    assert found["norm.running_mean"].equal(torch.ones(1))
    assert found["unused.weight"].equal(torch.zeros(1, 2))
    assert "norm.num_batches_tracked" not in found
    first = measure(objective(Path()), "fisher", limit=1)
    assert first["first.weight"].shape == (1, 2)


def test_gram_is_the_mean_of_outer_products_of_inputs():
    found = measure(objective(Path()), "gram")
    assert sorted(found) == ["again.weight", "first.weight"]
    torch.testing.assert_close(found["first.weight"], INPUTS.t() @ INPUTS / 3)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 3, (3, 2), stride=2, padding=1, dilation=(1, 2)), (2, 2, 7, 8)),
        (nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), (2, 2, 9)),
    ],
)
def test_the_gram_of_a_convolution_is_that_of_its_patches(layer, shape):
    inputs = torch.randn(shape)
    given = Objective(nn.Sequential(layer), [inputs], lambda call, batch: call(batch).sum())
    gram = measure(given, "gram")["0.weight"].double()
    with torch.no_grad():
        layer.bias.zero_()
        outputs = layer(inputs).double()
    rows = layer.weight.detach().double().reshape(3, -1)
    num_positions = outputs.numel() / 3
    squares = outputs.square().transpose(0, 1).reshape(3, -1).sum(dim=1) / num_positions
    torch.testing.assert_close((rows @ gram @ rows.t()).diagonal(), squares, rtol=1e-5, atol=1e-7)


def test_what_cannot_be_measured_is_said():
    with pytest.raises(UserError, match="has no batch"):
        measure(objective(Path(), samples=0), "fisher")
    silent = Objective(Tied(), [INPUTS], lambda call, batch: torch.zeros(()))
    with pytest.raises(UserError, match="no linear layer saw any input"):
        measure(silent, "gram")
    with pytest.raises(UserError, match="does not depend on the weights"):
        measure(silent, "fisher")


@pytest.mark.parametrize(("kind", "method"), [("fisher", "fisher"), ("gram", "regmean")])
def test_the_command_measures_what_a_recipe_merges_with(tmp_path, monkeypatch, kind, method):
    monkeypatch.chdir(tmp_path)

    def soups(*words: object, code: int = 0) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == code, done.output + repr(done.exception)
        return done.stdout if code == 0 else done.stderr

    for seed in (1, 2):
        torch.save(state(seed), f"{seed}.pt")
        words = ("stats", f"{seed}.pt", "--kind", kind, "--loss", f"{ME}:objective", "-o", f"s{seed}")
        assert json.loads(soups(*words, "--json"))["kind"] == kind
        assert "already there" in soups(*words, code=2)
    torch.manual_seed(0)  # the objective's own weights do not count: those of the checkpoint are loaded
    expected = objective(Path())
    expected.model.load_state_dict(state(2))
    assert load_file("s2/model.safetensors")["first.weight"].equal(measure(expected, kind)["first.weight"])
    models = {str(seed): {"path": f"{seed}.pt", "extra": f"s{seed}"} for seed in (1, 2)}
    Path("recipe.yaml").write_text(yaml.safe_dump({"method": method, "models": models}))
    soups("merge", "recipe.yaml", "-o", "merged")
    merged = load_file("merged/model.safetensors")["first.weight"]
    assert not merged.equal(state(1)["first.weight"])
    assert not merged.equal((state(1)["first.weight"] + state(2)["first.weight"]) / 2) or kind == "gram"
    assert "unknown statistic" in soups("stats", "1.pt", "--kind", "x", "--loss", f"{ME}:objective", "-o", "o", code=2)
    save_file({"other": torch.ones(1)}, "other.safetensors")
    words = ("stats", "other.safetensors", "--kind", kind, "--loss", f"{ME}:objective", "-o", "o")
    assert "does not match the checkpoints" in soups(*words, code=2)


class Shared(nn.Module):
    """One weight in two layers, called by keyword, and a convolution without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight
        self.convolution = nn.Conv1d(1, 1, 2, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.convolution(self.second(input=self.first(inputs).tanh()))


def test_the_gram_of_a_weight_in_two_layers_is_that_of_all_their_inputs():
    model = Shared()
    found = measure(Objective(model, [INPUTS[:1]], lambda call, batch: call(batch).sum()), "gram")
    hidden = model.first(INPUTS[:1]).tanh().detach()
    rows = torch.cat([INPUTS[:1], hidden])
    torch.testing.assert_close(found["first.weight"].float(), rows.t() @ rows / 2)
    assert found["second.weight"].equal(found["first.weight"])
    last = model.second(hidden).detach()
    torch.testing.assert_close(found["convolution.weight"].float(), last.t() @ last)
