"""Distances in weights against float64 formulas, and barriers and disagreement on hand-made scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from soups import diff as diff_module
from soups.diff import diff, matching_units
from soups.errors import UserError
from soups.modules import module_of
from soups.path import barriers, disagreement, paths
from soups.results import Result, read_results
from soups.state import open_checkpoint


def save(folder, state):
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    return open_checkpoint(folder)


def state(seed, steps=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "layers.0.weight": torch.randn(6, 5, generator=generator),
        "layers.0.bias": torch.randn(6, generator=generator),
        "layers.1.weight": torch.randn(6, 6, generator=generator),
        "head": torch.randn(3, generator=generator),
        "steps": torch.tensor(steps),
    }


@pytest.mark.parametrize("piece", [4, 1 << 20])
def test_norms_cosines_and_signs_are_those_of_task_vectors(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(diff_module, "PIECE", piece)
    base, a, b = state(0), state(1), state(2, steps=9)
    a["head"] = base["head"].clone()  # not changed by the first model
    data = diff([save(tmp_path / "a", a), save(tmp_path / "b", b)], save(tmp_path / "base", base))
    assert list(data["modules"]) == ["head", "layers.0", "layers.1", "all"]
    assert data["integers"] == ["steps"]
    names = ["layers.0.weight", "layers.0.bias"]
    flat = [torch.cat([s[n].reshape(-1) for n in names]).double() for s in (a, b, base)]
    first, second = flat[0] - flat[2], flat[1] - flat[2]
    row = data["modules"]["layers.0"]
    assert row["num_entries"] == 36
    assert row["distance"]["a|b"] == pytest.approx(float((flat[0] - flat[1]).norm()))
    assert row["update_norm"] == pytest.approx({"a": float(first.norm()), "b": float(second.norm())})
    assert row["relative_update"]["a"] == pytest.approx(float(first.norm() / flat[2].norm()))
    cosine = float(first @ second / first.norm() / second.norm())
    assert row["cosine"]["a|b"] == pytest.approx(cosine)
    assert row["sign_agreement"]["a|b"] == pytest.approx(float((first.sign() == second.sign()).double().mean()))
    head = data["modules"]["head"]
    assert head["changed"] == {"a": 0.0, "b": 1.0}
    assert head["cosine"]["a|b"] is head["sign_agreement"]["a|b"] is None


def test_tied_tensors_of_a_file_of_torch_count_once(tmp_path):
    tables = [torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    for name, table in zip("ab", tables, strict=True):
        alike = {"one": torch.ones(2), "other": torch.ones(2)}  # equal, but no one tensor
        torch.save({"table.weight": table, "head.weight": table, **alike}, tmp_path / f"{name}.pt")
    data = diff([open_checkpoint(tmp_path / f"{name}.pt") for name in "ab"])
    assert data["modules"]["all"]["num_entries"] == 15 + 4
    assert data["modules"]["all"]["distance"]["a|b"] == pytest.approx(float((tables[0] - tables[1]).double().norm()))
    assert data["permutation"]["a|b"]["num_units"] == 5


def test_without_a_base_there_are_distances_only(tmp_path):
    row = diff([save(tmp_path / "a", state(1)), save(tmp_path / "b", state(2))])["modules"]["all"]
    assert set(row) == {"num_entries", "norm", "distance"}


def test_permuted_units_are_noticed_and_fine_tunings_are_not(tmp_path):
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    near = weight + 0.1 * torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    moved = weight[torch.randperm(40, generator=torch.Generator().manual_seed(2))]
    assert matching_units(weight, near) == 1.0
    assert matching_units(weight, moved) < 0.2
    assert matching_units(weight[:1], weight[:1]) is matching_units(weight[:, 0], weight[:, 0]) is None
    data = diff([save(tmp_path / "a", {"w": weight}), save(tmp_path / "b", {"w": moved})])
    assert data["permutation"]["a|b"]["moved"][0]["tensor"] == "w"


def test_models_of_other_shapes_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not match"):
        diff([save(tmp_path / "a", {"w": torch.zeros(2)}), save(tmp_path / "b", {"w": torch.zeros(3)})])


def test_modules_end_at_the_first_number():
    names = ("encoder.layers.3.self_attn.q.weight", "embed.weight", "scale")
    assert [module_of(name) for name in names] == ["encoder.layers.3", "embed", "scale"]


def result(share, values, samples=()):
    return Result(
        f"{share}", {"a": 1 - share, "b": share}, {"acc": float(np.mean(values))}, len(values), {"acc": values}, samples
    )


def test_barriers_by_both_definitions_and_gains():
    path = [result(0.0, [4.0, 4.0]), result(0.5, [1.0, 1.0]), result(0.75, [2.0, 2.0]), result(1.0, [0.0, 0.0])]
    row = barriers(path)["acc"]
    # chord: 2 at 0.5 and 1 at 0.75; mean of the ends: 2, of which 0 is the lowest score, at an end
    assert row["chord"]["value"] == pytest.approx(1.0)
    assert row["mean_of_ends"]["value"] == pytest.approx(2.0)
    assert row["gain"]["value"] == pytest.approx(1.0)
    assert row["grid"] == [0.0, 0.5, 0.75, 1.0]


def test_paths_need_both_ends_and_a_point_between():
    ends = [result(0.0, [1.0]), result(1.0, [1.0])]
    assert paths(ends) == {}
    assert list(paths([*ends, result(0.5, [1.0]), result(1.5, [1.0])])) == ["a|b"]
    assert len(paths([*ends, result(0.5, [1.0]), result(1.5, [1.0])])["a|b"]) == 3


def test_disagreement_of_right_and_wrong_answers():
    first = result(0.0, [1.0, 1.0, 0.0, 0.0], [{"output": "cat"}, {"output": "dog"}])
    second = result(1.0, [1.0, 0.0, 1.0, 0.0], [{"output": "cat"}, {"output": "cow"}])
    row = disagreement([first, second])["a|b"]
    assert row["metrics"]["acc"] == {
        "mean_difference": 0.5,
        "correlation": 0.0,
        "one_wrong": 0.5,
        "both_wrong": 0.25,
        "ratio": 2.0,
        "q": 0.0,
    }
    assert row["outputs"] == {"num_samples": 2, "share": 0.5}


def of_head(share, head, value):
    """A result with a coefficient of its own for the head."""
    weights = {"a": 1 - head, "b": head}
    key = f"{share}{head}"
    return Result(key, {"a": 1 - share, "b": share}, {"acc": value}, 1, {"acc": [value]}, modules={"head": weights})


def test_a_point_with_another_head_is_neither_a_model_nor_on_the_path():
    plain = [of_head(share, share, value) for share, value in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0))]
    mixed = [of_head(0.0, 1.0, 7.0), of_head(1.0, 0.0, -7.0), of_head(0.5, 0.0, -9.0)]
    assert paths(mixed + plain + mixed) == {"a|b": plain}
    assert disagreement(plain + mixed) == disagreement(plain)
    assert [r.alone for r in (*plain, *mixed)] == ["a", None, "b", None, None, None]


@pytest.mark.parametrize(
    ("more", "is_exact"),
    [
        ({"method": "linear", "params": {}}, True),
        ({"method": "linear", "params": {}, "rules": [["head", [[0.0], [1.0]]]]}, False),
        ({"method": "ties", "params": {"density": 1.0}}, True),
        ({"method": "ties", "params": {"density": 0.2}}, False),
        ({"method": "breadcrumbs", "params": {"density": 1.0, "outliers": 0.1}}, False),
    ],
)
def test_a_corner_is_a_model_where_nothing_is_trimmed_or_ruled(tmp_path, more, is_exact):
    line = {"key": "k", "coefficients": {"a": 1.0, "b": 0.0}, "metrics": {"acc": 1.0}, "num_samples": 1}
    (tmp_path / "results.jsonl").write_text(json.dumps(line | {"scores": {"acc": [1.0]}}) + "\n")
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, **more}))
    assert [r.alone for r in read_results(tmp_path)] == ["a" if is_exact else None]
