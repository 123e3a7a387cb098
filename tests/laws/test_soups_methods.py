"""Laws that every merge method obeys; a new file in soups/methods/ is tested without an edit here."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soups.errors import UserError
from soups.methods import Method, Place, get_method, method_names
from soups.methods._weights import SUM_TOLERANCE

METHODS = method_names()
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WEIGHTS = st.integers(0, 20).map(lambda count: count / 20)
TENSOR = "layer.weight"
PLACE = Place(TENSOR, ("a", "b"))
SWAPPED = Place(TENSOR, ("b", "a"))


def bound(name: str, shape: tuple[int, ...] = (3, 5), *, exact: bool = True, **params) -> Method:
    """Return a method for the models a, b and c, with its further tensors; by default nothing is trimmed."""
    method = get_method(name)
    params = (method.exact_params if exact else {}) | params
    extras = [(SimpleNamespace(digest=model), extra(name, seed, shape)) for seed, model in enumerate("abc")]
    return get_method(name, params, extras if method.extra else ())


def extra(name: str, seed: int, shape: tuple[int, ...]) -> SimpleNamespace:
    tensor = random_tensor(seed + 1000, shape).abs()
    if name == "regmean":
        if len(shape) < 2:
            return SimpleNamespace(infos={})
        inputs = random_tensor(seed + 1000, (50, torch.Size(shape[1:]).numel()))
        tensor = inputs.t() @ inputs
    return SimpleNamespace(infos={TENSOR: None}, reader=lambda: nullcontext(lambda _: tensor))


def base_of(method: Method, like: torch.Tensor, seed: int = 99) -> torch.Tensor | None:
    return None if method.base == "none" else random_tensor(seed, tuple(like.shape), like.dtype)


def random_tensor(seed: int, shape: tuple[int, ...] = (3, 5), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=st.integers(0, 2**16), chosen=st.integers(0, 1))
@settings(max_examples=10, deadline=None)
def test_all_the_weight_on_one_model_returns_its_bytes(name, dtype, seed, chosen):
    method = bound(name)
    models = [random_tensor(seed, dtype=dtype), random_tensor(seed + 1, dtype=dtype)]
    models[0][0, :3] = torch.tensor([float("nan"), float("inf"), -0.0], dtype=dtype)
    weights = [0.0, 0.0]
    weights[chosen] = 1.0
    merged = method.merge(models, weights, base_of(method, models[0]), PLACE)
    assert same_bytes(merged, models[chosen])


@pytest.mark.parametrize("exact", [True, False], ids=["whole", "trimmed"])
@pytest.mark.parametrize("name", METHODS)
@given(seed=st.integers(0, 2**16), weight=WEIGHTS)
@settings(max_examples=20, deadline=None)
def test_order_of_models_is_irrelevant(name, exact, seed, weight):
    method = bound(name, exact=exact)
    models = [random_tensor(seed), random_tensor(seed + 1)]
    base = base_of(method, models[0])
    forward = method.merge(models, [1 - weight, weight], base, PLACE)
    backward = method.merge(models[::-1], [weight, 1 - weight], base, SWAPPED)
    assert same_bytes(forward, backward)


@pytest.mark.parametrize("exact", [True, False], ids=["whole", "trimmed"])
@pytest.mark.parametrize("name", METHODS)
@given(seed=st.integers(0, 2**16), counts=st.lists(st.integers(1, 9), min_size=3, max_size=3))
@settings(max_examples=10, deadline=None)
def test_order_of_three_models_is_irrelevant_up_to_rounding(name, exact, seed, counts):
    method = bound(name, exact=exact)
    weights = [count / sum(counts) for count in counts]
    models = [random_tensor(seed + i) for i in range(3)]
    base = base_of(method, models[0])
    try:
        method.check(weights, has_base=base is not None)
    except UserError:
        assert name == "slerp"
        return
    results = [
        method.merge([models[i] for i in o], [weights[i] for i in o], base, Place(TENSOR, ["abc"[i] for i in o]))
        for o in itertools.permutations(range(3))
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=2**-22, atol=1e-12)  # float64 sums, one float32 rounding


@pytest.mark.parametrize("name", METHODS)
@given(seed=st.integers(0, 2**16), weight=WEIGHTS)
@settings(max_examples=20, deadline=None)
def test_copies_merge_to_themselves(name, seed, weight):
    method = bound(name)
    model = random_tensor(seed)
    merged = method.merge([model, model.clone()], [1 - weight, weight], base_of(method, model), PLACE)
    # float64 sums rounded once to float32; atol: (model - base) + base and the solver of regmean, in float64
    torch.testing.assert_close(merged, model, rtol=2**-23, atol=1e-12)


@pytest.mark.parametrize("exact", [True, False], ids=["whole", "trimmed"])
@pytest.mark.parametrize("weights", [(0.25, 0.75), (-0.5, 1.5)])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mask_of_infinities_merges_to_itself_and_spoils_nothing_else(name, dtype, weights, exact):
    outside = {"extrapolate": True} if min(weights) < 0 and name in ("linear", "slerp") else {}
    averaged = {"normalize": False} if min(weights) < 0 and name == "ties" else {}
    method = bound(name, (9,), exact=exact, **outside, **averaged)
    finite = [random_tensor(seed, (9,), dtype) for seed in (1, 2)]
    base = base_of(method, finite[0])
    if name == "slerp":
        base = random_tensor(99, (9,), dtype)
    mask = torch.tensor([0.0, -torch.inf, torch.inf] * 3, dtype=dtype)
    models = [torch.where(mask.isinf(), mask, tensor) for tensor in finite]
    try:
        method.check(weights, has_base=base is not None)
    except UserError:
        assert min(weights) < 0
        return
    base = None if base is None else torch.where(mask.isinf(), mask, base)
    merged = method.merge(models, weights, base, PLACE)
    assert merged[mask.isinf()].equal(mask[mask.isinf()])
    assert merged[~mask.isinf()].isfinite().all()
    if method.is_exact:  # what is finite is what it would be with zeros in place of the mask
        zeroed = [None if t is None else t.masked_fill(mask.isinf(), 0) for t in (*models, base)]
        expected = method.merge(zeroed[:2], weights, zeroed[2], PLACE)
        assert merged[~mask.isinf()].equal(expected[~mask.isinf()])


@pytest.mark.parametrize("exact", [True, False], ids=["whole", "trimmed"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 3), (0, 2), (70_001,)], ids=str)
def test_shape_and_dtype_are_kept(name, dtype, shape, exact):
    method = bound(name, shape, exact=exact)
    models = [random_tensor(seed, shape, dtype) for seed in (1, 2)]
    merged = method.merge(models, [0.5, 0.5], base_of(method, models[0]), PLACE)
    assert (merged.shape, merged.dtype) == (models[0].shape, dtype)
    assert torch.isfinite(merged).all()


@pytest.mark.parametrize("exact", [True, False], ids=["whole", "trimmed"])
@pytest.mark.parametrize("name", METHODS)
def test_inputs_are_untouched_and_not_returned(name, exact):
    method = bound(name, exact=exact)
    for weights in ([0.25, 0.75], [1.0, 0.0]):
        models = [random_tensor(seed) for seed in (1, 2)]
        base = base_of(method, models[0])
        inputs = [tensor for tensor in (*models, base) if tensor is not None]
        before = [tensor.clone() for tensor in inputs]
        merged = method.merge(models, weights, base, PLACE)
        merged.add_(1)
        assert all(same_bytes(old, new) for old, new in zip(before, inputs, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_mixture_differs_from_both_models(name):
    method = bound(name)
    models = [random_tensor(seed) for seed in (1, 2)]
    merged = method.merge(models, [0.5, 0.5], base_of(method, models[0]), PLACE)
    assert not torch.equal(merged, models[0])
    assert not torch.equal(merged, models[1])


@pytest.mark.parametrize("exact", [True, False], ids=["whole", "trimmed"])
@pytest.mark.parametrize("name", METHODS)
def test_writing_into_a_strided_tensor_of_another_dtype_equals_merging(name, exact):
    method = bound(name, exact=exact)
    models = [random_tensor(seed, dtype=torch.bfloat16) for seed in (1, 2)]
    base = base_of(method, models[0])
    contiguous, strided = torch.empty(3, 5), torch.empty(5, 3).t()
    method.merge_into(contiguous, models, [0.3, 0.7], base, PLACE)
    method.merge_into(strided, models, [0.3, 0.7], base, PLACE)
    assert torch.equal(contiguous, strided)
    assert same_bytes(contiguous.to(torch.bfloat16), method.merge(models, [0.3, 0.7], base, PLACE))


@pytest.mark.parametrize("exact", [True, False], ids=["whole", "trimmed"])
@pytest.mark.parametrize("name", METHODS)
def test_pieces_are_those_of_the_whole(name, exact, monkeypatch):
    """Cutting a parameter changes no byte, for methods that measure it first as for those that need not."""
    models = [random_tensor(seed) for seed in (1, 2)]
    base = base_of(get_method(name), models[0])
    whole = bound(name, exact=exact).merge(models, [0.3, 0.7], base, PLACE)
    monkeypatch.setattr("soups.methods.CHUNK_ELEMENTS", 4)
    assert same_bytes(bound(name, exact=exact).merge(models, [0.3, 0.7], base, PLACE), whole)


@pytest.mark.parametrize("name", [name for name in METHODS if "seed" in get_method(name).params])
def test_random_methods_draw_by_seed_tensor_and_model(name):
    models = [random_tensor(seed, (40, 50)) for seed in (1, 2, 3)]
    base = random_tensor(99, (40, 50))

    def merged(seed=0, tensor=TENSOR, chosen=(0, 1)):
        method = bound(name, exact=False, seed=seed, elect=False)
        place = Place(tensor, ["abc"[i] for i in chosen])
        return method.merge([models[i] for i in chosen], [0.5] * len(chosen), base, place)

    assert same_bytes(merged(), merged())
    assert not torch.equal(merged(), merged(seed=1))
    assert not torch.equal(merged(), merged(tensor="other.weight"))
    # One more model does not change what the others lose: the sums of task vectors add up.
    alone = sum((merged(chosen=(i,)) - base).double() for i in range(3))
    torch.testing.assert_close((merged(chosen=(0, 1, 2)) - base).double(), alone, rtol=1e-4, atol=1e-5)  # float32
    with pytest.raises(ValueError, match="which parameter"):
        bound(name, exact=False).merge(models[:2], [0.5, 0.5], base)


@pytest.mark.parametrize("name", METHODS)
def test_unknown_and_mistyped_parameters_raise(name):
    with pytest.raises(UserError, match="no parameter 'wieght'"):
        get_method(name, {"wieght": 1.0})
    for key in get_method(name).params:
        with pytest.raises(UserError, match=key):
            get_method(name, {key: "text"})


@pytest.mark.parametrize("name", METHODS)
def test_fractions_outside_their_range_raise(name):
    for key in sorted({"density", "spread", "outliers", "floor", "shrink", "ridge"} & set(get_method(name).params)):
        with pytest.raises(UserError, match=key):
            get_method(name, {key: -0.5}).check([0.5, 0.5], has_base=get_method(name).base == "required")


@pytest.mark.parametrize("name", METHODS)
def test_a_base_is_required_or_refused_as_declared(name):
    method = get_method(name)
    assert method.base in ("none", "optional", "required")
    for has_base in (False, True):
        fits = method.base == "optional" or has_base == (method.base == "required")
        if fits:
            method.check([0.5, 0.5], has_base=has_base)
        else:
            with pytest.raises(UserError, match="base"):
                method.check([0.5, 0.5], has_base=has_base)


@given(seed=st.integers(0, 2**16), counts=st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any))
@settings(max_examples=30, deadline=None)
def test_linear_is_the_weighted_sum_for_any_number_and_order_of_models(seed, counts):
    weights = [count / sum(counts) for count in counts]
    models = [random_tensor(seed + i) for i in range(3)]
    expected = sum(model.double() * weight for model, weight in zip(models, weights, strict=True))
    for order in itertools.permutations(range(3)):
        merged = get_method("linear").merge([models[i] for i in order], [weights[i] for i in order])
        torch.testing.assert_close(merged, expected.float(), rtol=2**-23, atol=1e-12)  # one float32 rounding


@pytest.mark.parametrize("weights", [(-0.5, 1.5), (0.5, 0.6), (0.333, 0.333), (float("nan"), 1.0)])
def test_linear_extrapolates_only_when_asked(weights):
    models = [random_tensor(1), random_tensor(2)]
    with pytest.raises(UserError, match="coefficients"):
        get_method("linear").merge(models, weights)
    merged = get_method("linear", {"extrapolate": True}).merge(models, weights)
    torch.testing.assert_close(merged, weights[0] * models[0] + weights[1] * models[1], equal_nan=True)


def test_sums_of_thirds_are_accepted():
    get_method("linear").check([1 / 3] * 3, has_base=False)
    assert abs(0.333 * 3 - 1) > SUM_TOLERANCE


@pytest.mark.parametrize("name", [name for name in METHODS if name != "slerp"])
def test_zero_weight_ignores_infinities(name):
    method = bound(name, (1, 1))
    models = [torch.tensor([[value]]) for value in (float("inf"), 1.0, 3.0)]
    base = None if method.base == "none" else torch.zeros(1, 1)
    assert torch.isfinite(method.merge(models, [0.0, 0.5, 0.5], base, Place(TENSOR, "abc"))).all()


@pytest.mark.parametrize("name", ["breadcrumbs", "dare", "della", "task_arithmetic", "ties"])
def test_without_any_coefficient_the_result_is_the_base(name):
    for options in itertools.product((False, True), repeat=2):
        flags = dict(zip(("elect", "normalize"), options, strict=True))
        method = get_method(name)
        method = bound(name, exact=False, **{key: value for key, value in flags.items() if key in method.params})
        base = random_tensor(99)
        if method.params.get("normalize"):
            with pytest.raises(UserError, match="average"):
                method.check([0.0, 0.0], has_base=True)
        else:
            method.check([0.0, 0.0], has_base=True)
            assert method.merge([random_tensor(1), random_tensor(2)], [0.0, 0.0], base, PLACE).equal(base)


def test_an_unknown_method_suggests_the_closest():
    with pytest.raises(UserError, match="linaer") as error:
        get_method("linaer")
    assert "did you mean 'linear'?" in str(error.value)
