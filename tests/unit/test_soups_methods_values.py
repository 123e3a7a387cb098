"""Every merge method against values worked by hand, or against a slow float64 reference written here."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soups.errors import UserError
from soups.methods import Place, get_method

PLACE = Place("w", ("a", "b"))
BASE = torch.tensor([1.0, 2.0, 3.0, 4.0])


def merged(name, deltas, weights, base=BASE, **params):
    models = [base + torch.tensor(delta) for delta in deltas]
    return (get_method(name, params).merge(models, weights, base, PLACE) - base).tolist()


@contextmanager
def _reader(tensor):
    yield lambda name: tensor


def with_extras(name, tensors, **params):
    pairs = [
        (SimpleNamespace(digest=model), SimpleNamespace(infos={"w": None}, reader=partial(_reader, tensor)))
        for model, tensor in zip(PLACE.models, tensors, strict=True)
    ]
    return get_method(name, params, pairs)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_task_arithmetic_by_hand():
    base, models = torch.tensor([1.0, 2.0]), [torch.tensor([3.0, 2.0]), torch.tensor([1.0, 6.0])]
    assert get_method("task_arithmetic").merge(models, [0.5, -1.0], base).tolist() == [2.0, -2.0]
    assert get_method("task_arithmetic", {"scale": 2}).merge(models, [1.0, 0.0], base).tolist() == [5.0, 2.0]


def test_wise_ft_is_linear_with_the_base_as_a_model():
    zero_shot, tuned = random(4), random(4, seed=1)
    wise = get_method("task_arithmetic").merge([tuned], [0.25], zero_shot)
    torch.testing.assert_close(wise, get_method("linear").merge([zero_shot, tuned], [0.75, 0.25]), rtol=0, atol=1e-15)


def test_slerp_by_hand_stays_on_the_circle():
    merged = get_method("slerp").merge([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], [2 / 3, 1 / 3])
    torch.testing.assert_close(merged, torch.tensor([3**0.5 / 2, 0.5]))
    base = torch.tensor([10.0, 10.0])
    shifted = get_method("slerp").merge([torch.tensor([11.0, 10.0]), torch.tensor([10.0, 11.0])], [2 / 3, 1 / 3], base)
    torch.testing.assert_close(shifted, torch.tensor([10 + 3**0.5 / 2, 10.5]))


@pytest.mark.parametrize("second", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], ids=["parallel", "opposite", "zero"])
def test_slerp_without_a_unique_circle_is_linear(second):
    merged = get_method("slerp").merge([torch.tensor([1.0, 0.0]), torch.tensor(second)], [0.25, 0.75])
    torch.testing.assert_close(merged, torch.tensor([0.25 + 0.75 * second[0], 0.0]))


def test_slerp_of_three_models_is_refused():
    with pytest.raises(UserError, match="two models"):
        get_method("slerp").check([0.2, 0.3, 0.5], has_base=False)


def test_ties_by_hand():
    # Half is kept: of the first -2 and 3, of the second -1.5 and both entries of size 1. Signs of the sums: - - + 0.
    deltas = [[1.0, -2.0, 3.0, 0.25], [-1.5, -1.0, 1.0, 0.125]]
    assert merged("ties", deltas, [0.5, 0.5], density=0.5) == [-1.5, -1.5, 2.0, 0.0]
    assert merged("ties", deltas, [0.5, 0.5], density=0.5, normalize=False) == [-0.75, -1.5, 2.0, 0.0]
    assert merged("ties", deltas, [3, 1], density=0.5, scale=2) == [-3.0, -3.5, 5.0, 0.0]
    # All is kept: the conflict in the first entry is won by the larger, 0.5 against 0.75.
    assert merged("ties", deltas, [0.5, 0.5], density=1) == [-1.5, -1.5, 2.0, 0.1875]


@given(
    st.lists(st.lists(st.integers(-8, 8), min_size=6, max_size=6), min_size=2, max_size=3),
    st.sampled_from([0.2, 0.5, 0.7, 1.0]),
    st.booleans(),
)
def test_ties_equals_a_slow_reference(rows, density, normalize):
    weights = [1.0, 0.5, 0.25][: len(rows)]
    base = torch.zeros(6, dtype=torch.float64)
    expected = []
    for entry in range(6):
        kept = []
        for row, weight in zip(rows, weights, strict=True):
            least = sorted(map(abs, row), reverse=True)[max(1, int(density * 6)) - 1]
            kept.append((row[entry] if abs(row[entry]) >= least else 0, weight))
        sign = 1 if sum(value * weight for value, weight in kept) >= 0 else -1
        agreeing = [(value, weight) for value, weight in kept if value * sign > 0]
        divisor = sum(weight for _, weight in agreeing) if normalize and agreeing else 1
        expected.append(sum(value * weight for value, weight in agreeing) / divisor)
    method = get_method("ties", {"density": density, "normalize": normalize})
    result = method.merge([torch.tensor(row, dtype=torch.float64) for row in rows], weights, base, PLACE)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-14)


def test_ties_refuses_to_average_with_negative_coefficients():
    with pytest.raises(UserError, match="normalize=false"):
        get_method("ties").check([1.0, -0.5], has_base=True)
    get_method("ties", {"normalize": False}).check([1.0, -0.5], has_base=True)


def test_breadcrumbs_by_hand():
    # One outlier is dropped, then half is kept: -2 and 1; 1 and 1.
    deltas = [[1.0, -2.0, 3.0, 0.25], [-1.5, -1.0, 1.0, 0.125]]
    params = {"density": 0.5, "outliers": 0.25}
    assert merged("breadcrumbs", deltas, [1.0, 0.0], **params) == [1.0, -2.0, 0.0, 0.0]
    assert merged("breadcrumbs", deltas, [0.5, 0.5], **params) == [0.5, -1.5, 0.5, 0.0]
    assert merged("breadcrumbs", deltas, [0.5, 0.5], density=1, outliers=0) == [-0.25, -1.5, 2.0, 0.1875]
    assert merged("breadcrumbs", deltas, [0.5, 0.5], density=1, outliers=0, elect=True) == [-0.75, -1.5, 2.0, 0.1875]


def test_dare_keeps_the_asked_fraction_rescaled():
    base, model = torch.zeros(100_000, dtype=torch.float64), random(100_000)
    result = get_method("dare", {"density": 0.3}).merge([model], [1.0], base, Place("w", ["a"]))
    kept = result != 0
    torch.testing.assert_close(result[kept], model[kept] / 0.3, rtol=1e-15, atol=0)
    assert abs(kept.double().mean() - 0.3) < 5 * (0.3 * 0.7 / 100_000) ** 0.5
    assert abs(result[:50_000].mean() - model[:50_000].mean()) < 0.05  # unbiased


def test_dare_with_election_adds_up_what_agrees():
    deltas = [[1.0, -2.0, 3.0, 0.25], [-1.5, -1.0, 1.0, 0.125]]
    assert merged("dare", deltas, [0.5, 0.5], density=1.0, elect=True) == [-0.75, -1.5, 2.0, 0.1875]


def test_della_keeps_large_entries_more_often_and_is_unbiased():
    base, model = torch.zeros(200, 1000, dtype=torch.float64), random(200, 1000)
    method = get_method("della", {"density": 0.5, "spread": 0.4, "elect": False})
    result = method.merge([model], [1.0], base, Place("w", ["a"]))
    order = model.abs().float().argsort(dim=1, stable=True)
    kept, ratio = (result != 0).gather(1, order), (result / model).gather(1, order)
    rates = kept.double().mean(dim=0)
    for column, probability in ((slice(0, 100), 0.32), (slice(450, 550), 0.5), (slice(900, 1000), 0.68)):
        assert abs(rates[column].mean() - probability) < 5 * (0.25 / 20_000) ** 0.5
    expected = torch.linspace(0.3, 0.7, 1000).double().expand_as(ratio)
    torch.testing.assert_close(ratio[kept], 1 / expected[kept], rtol=1e-6, atol=0)  # factors are float32
    assert abs(result.sum() - model.sum()) < 5 * float((model**2 / 0.3).sum()) ** 0.5


def test_della_of_a_vector_ranks_it_as_one_row():
    method = get_method("della", {"density": 0.5, "spread": 0.2, "elect": False})
    model = torch.arange(1, 5001, dtype=torch.float64)
    result = method.merge([model], [1.0], torch.zeros(5000, dtype=torch.float64), Place("w", ["a"]))
    factors = (result / model)[result != 0]
    assert factors.max() <= 1 / 0.4 + 1e-6
    assert factors.min() >= 1 / 0.6 - 1e-6
    assert (factors.diff() < 0).all()


@pytest.mark.parametrize(
    ("angle", "num_models", "fraction"),
    [(90, 2, 0.0), (60, 2, 2 / 3), (60, 3, 0.75), (0, 2, 1.0)],
)
def test_model_stock_by_hand(angle, num_models, fraction):
    # k unit task vectors with one angle between all pairs; the paper's ratio is k cos / (1 + (k - 1) cos).
    cosine = np.cos(np.radians(angle))
    gram = np.full((num_models, num_models), cosine) + (1 - cosine) * np.eye(num_models)
    values, vectors = np.linalg.eigh(gram)
    deltas = torch.from_numpy((vectors * np.sqrt(values.clip(0))).copy())
    base = random(num_models)
    weights = [1 / num_models] * num_models
    place = Place("w", "abc"[:num_models])
    result = get_method("model_stock").merge([base + delta for delta in deltas], weights, base, place)
    torch.testing.assert_close(result, base + fraction * deltas.mean(dim=0), rtol=1e-12, atol=1e-12)


def test_model_stock_with_coefficients_is_nearest_to_the_centre():
    # Task vectors m + n_i with n_i orthogonal to m and to each other: the centre is base + m.
    mean, noise = torch.tensor([2.0, 0, 0]).double(), torch.tensor([[0, 3.0, 0], [0, 0, 3.0]]).double()
    base, weights = random(3), [0.2, 0.8]
    result = get_method("model_stock").merge([base + mean + n for n in noise], weights, base, PLACE)
    towards = sum(w * (mean + n) for w, n in zip(weights, noise, strict=True))
    torch.testing.assert_close(result, base + (towards @ mean) / (towards @ towards) * towards, rtol=1e-12, atol=1e-12)


def test_model_stock_of_opposed_task_vectors_is_the_base():
    base = torch.zeros(2)
    result = get_method("model_stock").merge([torch.tensor([1.0, 0]), torch.tensor([-1.0, 0])], [0.5, 0.5], base, PLACE)
    assert result.tolist() == [0.0, 0.0]
    wide = [torch.tensor([1.0, 0.2]), torch.tensor([-1.0, 0.4])]  # a negative cosine, though not -1
    assert get_method("model_stock").merge(wide, [0.5, 0.5], base, PLACE).tolist() == [0.0, 0.0]


def test_fisher_by_hand():
    models = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0, 5.0, 5.0])]
    method = with_extras("fisher", [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([3.0, 1.0, 0.0])], floor=0.25)
    assert method.merge(models, [0.5, 0.5], None, PLACE).tolist() == pytest.approx([4.0, 4.2, 3.0], rel=1e-7)
    assert method.merge(models, [0.75, 0.25], None, PLACE).tolist() == pytest.approx([3.0, 23 / 7, 2.0], rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_fisher_does_not_round_coefficients_to_the_dtype_of_the_diagonals(dtype):
    models = [random(200, seed=seed) for seed in (1, 2)]
    stored = [random(200, seed=seed).abs().to(dtype) for seed in (3, 4)]
    merged = with_extras("fisher", stored).merge(models, [0.3, 0.7], None, PLACE)
    assert merged.equal(
        with_extras("fisher", [each.double() for each in stored]).merge(models, [0.3, 0.7], None, PLACE)
    )


def test_fisher_without_diagonals_says_so():
    method = with_extras("fisher", [torch.ones(2), torch.ones(2)])
    with pytest.raises(UserError, match="Fisher diagonal"):
        method.merge([torch.ones(3), torch.zeros(3)], [0.5, 0.5], None, PLACE)
    with pytest.raises(UserError, match="needs a Fisher diagonal per model"):
        get_method("fisher").check_extras({})


def test_regmean_minimises_the_squared_difference_of_outputs():
    inputs, weights = [random(40, 5, seed=1), random(30, 5, seed=2) * 3], [0.3, 0.7]
    models = [random(4, 5, seed=3), random(4, 5, seed=4)]
    method = with_extras("regmean", [x.t() @ x for x in inputs], shrink=1.0, ridge=1e-14)
    result = method.merge(models, weights, None, PLACE)
    stacked = torch.cat([w**0.5 * x for w, x in zip(weights, inputs, strict=True)]).numpy()
    targets = torch.cat([w**0.5 * x @ m.t() for w, x, m in zip(weights, inputs, models, strict=True)]).numpy()
    best = np.linalg.lstsq(stacked, targets, rcond=None)[0].T
    np.testing.assert_allclose(result.numpy(), best, rtol=1e-9, atol=1e-11)


def test_regmean_with_equal_inputs_is_linear():
    gram = random(20, 5).t() @ random(20, 5)
    models, weights = [random(4, 5, seed=3), random(4, 5, seed=4)], [0.3, 0.7]
    result = with_extras("regmean", [gram, gram]).merge(models, weights, None, PLACE)
    torch.testing.assert_close(result, get_method("linear").merge(models, weights), rtol=1e-10, atol=1e-12)


def test_regmean_averages_unused_inputs_and_refuses_a_wrong_size():
    models = [torch.ones(2, 2), torch.full((2, 2), 3.0)]
    grams = [torch.tensor([[4.0, 0], [0, 0]]), torch.tensor([[12.0, 0], [0, 0]])]
    result = with_extras("regmean", grams).merge(models, [0.5, 0.5], None, PLACE)
    assert result[:, 0].tolist() == pytest.approx([2.5, 2.5], rel=1e-6)  # 4 : 12
    assert ((result[:, 1] >= 1) & (result[:, 1] <= 3)).all()
    with pytest.raises(UserError, match="found: \\[3, 3\\]"):
        with_extras("regmean", [torch.eye(2), torch.eye(3)]).merge(models, [0.5, 0.5], None, PLACE)


def test_regmean_of_a_convolution_sees_its_unfolded_inputs():
    models, gram = [random(4, 2, 3, seed=1), random(4, 2, 3, seed=2)], [random(9, 6, seed=s) for s in (3, 4)]
    grams = [x.t() @ x for x in gram]
    result = with_extras("regmean", grams).merge(models, [0.5, 0.5], None, PLACE)
    flat = with_extras("regmean", grams).merge([m.reshape(4, 6) for m in models], [0.5, 0.5], None, PLACE)
    assert torch.equal(result.reshape(4, 6), flat)
