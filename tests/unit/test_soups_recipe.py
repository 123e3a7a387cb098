"""Recipe files: coefficients per tensor, policies where models differ, mergekit files, errors with names."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner

from soups.batch_norm import recompute
from soups.cli import app
from soups.errors import UserError
from soups.merge import Recipe, merge, plan
from soups.methods import get_method
from soups.recipes.coefficients import Rule, interpolate, resolve_weights
from soups.recipes.file import RecipeSection, build_recipe, explain, explain_lines, load_recipe, parse_yaml
from soups.recipes.mergekit import from_mergekit
from soups.recipes.policies import Policies
from soups.state import open_checkpoint

NAMES = [
    "encoder.embed.weight",
    *(f"decoder.layers.{i}.{part}.weight" for i in range(3) for part in ("attn", "mlp")),
    "head.weight",
]


def save(folder, tensors):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"rows": max(len(t) for t in tensors.values() if t.ndim)}))
    return open_checkpoint(folder)


def numbers(value, names=NAMES, rows=2):
    return {name: torch.full((rows, 2), float(value)) for name in names}


def write(tmp_path, text, name="recipe.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def result(recipe, tmp_path, name="out"):
    merge(recipe, tmp_path / name)
    return open_checkpoint(tmp_path / name).load()


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Make models a, all ones, and b, all threes, in the current folder."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a", numbers(1)), save(tmp_path / "b", numbers(3))
    return tmp_path


# Coefficients


def test_the_first_rule_that_matches_a_whole_name_wins():
    rules = [Rule(r"decoder\.layers\.0\..*", ((1.0,), (0.0,))), Rule(r"decoder\..*", ((0.0,), (1.0,)))]
    table = resolve_weights([0.5, 0.5], rules, NAMES)
    assert table["decoder.layers.0.attn.weight"] == (1.0, 0.0)
    assert table["decoder.layers.1.attn.weight"] == (0.0, 1.0)
    assert table["head.weight"] == (0.5, 0.5)


def test_a_profile_runs_over_the_depth():
    table = resolve_weights([0.5, 0.5], [Rule(r"decoder\.layers\.(\d+)\..*", ((1.0, 0.0), (0.0, 1.0)))], NAMES)
    assert [table[f"decoder.layers.{i}.mlp.weight"] for i in range(3)] == [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=5), st.floats(0, 1))
def test_a_profile_passes_through_its_values_and_stays_between_them(values, depth):
    for index, value in enumerate(values):
        assert interpolate(tuple(values), index / max(len(values) - 1, 1)) == pytest.approx(value, abs=1e-12)
    assert min(values) - 1e-12 <= interpolate(tuple(values), depth) <= max(values) + 1e-12


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule("encoder", ((1.0,),))], "'encoder' matches no tensor"),
        ([Rule(r"encoder\..*", ((1.0,),)), Rule(r"encoder\.embed.*", ((1.0,),))], "only tensors of earlier rules"),
        ([Rule(r"decoder\..*", ((1.0, 0.5),))], "the number of the layer"),
        ([Rule(r"(", ((1.0,),))], "not a regular expression"),
    ],
)
def test_patterns_that_do_nothing_are_errors(rules, message):
    with pytest.raises(UserError, match=message):
        resolve_weights([1.0], rules, NAMES)


def test_a_pattern_inside_names_is_told_to_match_the_whole():
    with pytest.raises(UserError, match=r"the whole name must match; found inside: encoder\.embed\.weight"):
        resolve_weights([1.0], [Rule("embed", ((1.0,),))], NAMES)


# Files


def test_a_recipe_merges_with_coefficients_by_name_pattern_and_depth(two):
    text = r"""
models: {a: a, b: {path: b}}
weights: {b: 0.25, a: 0.75}
coefficients:
  - {tensors: 'encoder\..*', weights: {a: 0, b: 1}}
  - {tensors: 'decoder\.layers\.(\d+)\..*', weights: {a: [1, 0], b: [0, 1]}}
"""
    recipe = load_recipe(write(two, text))
    merged = result(recipe, two)
    expected = {"encoder.embed.weight": 3.0, "head.weight": 1.5}
    expected |= {f"decoder.layers.{i}.{part}.weight": 1.0 + i for i in range(3) for part in ("attn", "mlp")}
    assert {name: tensor.unique().tolist() for name, tensor in merged.items()} == {n: [v] for n, v in expected.items()}
    assert (two / "out" / "merge_recipe.yaml").read_text() == text
    card = (two / "out" / "README.md").read_text()
    assert '"rules"' in card
    rows = {row["tensor"]: row for row in explain(recipe)}
    assert rows["decoder.layers.1.mlp.weight"]["coefficients"] == {"a": 0.5, "b": 0.5}
    assert rows["head.weight"]["action"] == "linear"
    lines = explain_lines(recipe)
    assert len(lines) == 1 + len(NAMES)
    assert any(line.startswith("head.weight") and "a 0.75 b 0.25" in line for line in lines)


@pytest.mark.parametrize("density", ["1", "1e-0", "'1.0'"])
def test_weights_are_equal_by_default_and_params_and_base_are_read(two, density):
    save(two / "init", numbers(0))
    text = f"{{method: ties, params: {{density: {density}}}, models: {{a: a, b: b}}, base: init}}"
    assert result(load_recipe(write(two, text)), two)["head.weight"].unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {a: a, b: b}\nweigths: {a: 1}", r"weigths: extra inputs(?s:.*)did you mean 'weights'"),
        ("models: {a: a, b: b}\nweights: {a: 1, c: 0}", r"no model is called 'c'"),
        ("models: {a: a, b: b}\nweights: {a: 1}", "no coefficient for b"),
        ("models: {a: a, b: b}\nweights: {a: 1, b: 1}", "sum to 2"),
        ("models: {a: a, b: b}\nweights: {a: .nan, b: 1}", "finite"),
        ("models: {a: a, b: b}\nweights: {a: x, b: 1}", "weights.a"),
        ("models: {a: a, a: b}", "the key 'a' is given twice"),
        ("models: {}", "no models"),
        ("[1, 2]", "a recipe is a mapping"),
        ("models: [", "not valid YAML"),
        ("models: {a: a, b: nowhere}", "no such checkpoint"),
        ("{method: tise, models: {a: a, b: b}}", "did you mean 'ties'"),
        ("{models: {a: a, b: b}, policies: {integers: last}}", "unknown policy 'last'"),
        ("{models: {a: a, b: b}, policies: {integers: 'from:c'}}", "choices: error, first, max, from:a, from:b"),
        ("{models: {a: a, b: b}, policies: {keys: some}}", "policies.keys"),
        ("{models: {a: a, b: b}, policies: {batch_norm: interpolate}}", "no batch-norm statistics"),
        ("{models: {a: a, b: b}, policies: {batch_norm: recompute}}", "needs a function"),
        ("{models: {a: a, b: b}, policies: {vocabulary: {embed: owners}}}", "'embed' matches no tensor"),
        ("{models: {a: a, b: b}, policies: {tied: [[head.weight, tail.weight]]}}", "tail.weight"),
        ("{method: fisher, models: {a: a, b: b}}", "needs a Fisher diagonal per model"),
        ("{models: {a: {path: a, extra: a}, b: b}}", "no extra: for b"),
        ("{models: {a: {path: a, extra: a}, b: {path: b, extra: b}}}", "takes no further tensors"),
        (
            "{models: {a: a, b: b}, coefficients: [{tensors: head, weights: {a: 1, b: 0}}]}",
            "'head' matches no tensor",
        ),
        (
            r"{models: {a: a, b: b}, coefficients: [{tensors: 'head\..*', weights: {a: 2, b: -1}}]}",
            r"outside \[0, 1\]",
        ),
    ],
)
def test_what_is_wrong_is_named_before_any_data_is_read(two, text, message):
    with pytest.raises(UserError, match=message):
        load_recipe(write(two, text)).check()


def test_no_such_recipe(two):
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(two / "nowhere.yaml")


def test_a_list_as_a_key_is_no_traceback():
    with pytest.raises(UserError, match="not valid YAML"):
        parse_yaml("{[1, 2]: 3}", "x")


# Policies


def recipe_of(*checkpoints, weights=(0.5, 0.5), method="linear", base=None, integers="error", rules=(), **policies):
    method = get_method(*method) if isinstance(method, tuple) else get_method(method)
    return Recipe(checkpoints, weights, method, base, integers, rules, Policies(**policies))


@pytest.mark.parametrize(
    ("policy", "weights", "expected"),
    [
        *[("first", (0.5, 0.5), 3), ("max", (0.5, 0.5), 9), ("from:b", (0.5, 0.5), 9)],
        *[("max", (1.0, 0.0), 3), ("error", (0.0, 1.0), 9)],
    ],
)
def test_integers_that_differ(tmp_path, policy, weights, expected):
    a = save(tmp_path / "a", numbers(1) | {"steps": torch.tensor(3)})
    b = save(tmp_path / "b", numbers(3) | {"steps": torch.tensor(9)})
    merged = result(recipe_of(a, b, weights=weights, integers=policy), tmp_path)
    assert merged["steps"].item() == expected
    with pytest.raises(UserError, match="integer tensor 'steps' differs"):
        merge(recipe_of(a, b), tmp_path / "other")


def test_integers_follow_the_coefficients_of_their_tensor(tmp_path):
    a = save(tmp_path / "a", numbers(1) | {"head.steps": torch.tensor(3)})
    b = save(tmp_path / "b", numbers(3) | {"head.steps": torch.tensor(9)})
    rules = [Rule(r"head\..*", ((0.0,), (1.0,)))]
    assert result(recipe_of(a, b, integers="first", rules=rules), tmp_path)["head.steps"].item() == 9


def test_missing_tensors_are_an_error_merged_among_owners_or_left_out(tmp_path):
    a = save(tmp_path / "a", numbers(1) | {"task_a": torch.ones(2)})
    b = save(tmp_path / "b", numbers(3) | {"task_bc": torch.ones(2)})
    c = save(tmp_path / "c", numbers(5) | {"task_bc": torch.full((2,), 3.0)})
    weights = (0.5, 0.3, 0.2)
    with pytest.raises(UserError, match="missing: task_a"):
        recipe_of(a, b, c, weights=weights).check()
    merged = result(recipe_of(a, b, c, weights=weights, keys="owners"), tmp_path)
    assert merged["task_a"].tolist() == [1.0, 1.0]
    assert merged["task_bc"].tolist() == pytest.approx([1.8, 1.8])  # 0.3 and 0.2 rescaled to 0.6 and 0.4
    common = recipe_of(a, b, c, weights=weights, keys="common")
    assert set(result(common, tmp_path, "common")) == set(NAMES)
    assert explain_lines(common)[-2:] == ["left out: task_a", "left out: task_bc"]


def test_all_the_weight_on_one_model_leaves_what_others_have_out(tmp_path):
    a = save(tmp_path / "a", numbers(1) | {"task_a": torch.ones(2)})
    b = save(tmp_path / "b", numbers(3) | {"task_b": torch.ones(2)})
    for keys in ("owners", "common"):
        merged = result(recipe_of(a, b, weights=(0.0, 1.0), keys=keys), tmp_path, keys)
        assert all(torch.equal(merged[name], tensor) for name, tensor in b.load().items())
        assert set(merged) == set(b.infos)


def test_a_tensor_that_one_model_adds_to_the_base_is_copied(tmp_path):
    base, a, b = (save(tmp_path / n, numbers(v)) for n, v in (("base", 0), ("a", 1), ("b", 3)))
    extra = save(tmp_path / "extra", numbers(3) | {"new_head": torch.full((2,), 7.0)})
    recipe = recipe_of(a, extra, weights=(0.4, 0.4), method="task_arithmetic", base=base, keys="owners")
    merged = result(recipe, tmp_path)
    assert merged["new_head"].tolist() == [7.0, 7.0]
    actions = {row["tensor"]: row["action"] for row in explain(recipe)}
    assert (actions["new_head"], actions["head.weight"]) == ("copy", "task_arithmetic")
    assert merged["head.weight"].unique().tolist() == pytest.approx([1.6])
    both = [save(tmp_path / n, c.load() | {"new_head": torch.ones(2)}) for n, c in (("a2", a), ("b2", b))]
    with pytest.raises(UserError, match="'new_head' are in 2 models but not in the base"):
        recipe_of(*both, method="task_arithmetic", base=base, keys="owners").check()


def test_vocabularies_of_different_sizes(tmp_path):
    small = save(tmp_path / "small", numbers(1) | {"embed": torch.ones(4, 2)})
    large = save(tmp_path / "large", numbers(3) | {"embed": torch.full((6, 2), 3.0)})
    with pytest.raises(UserError, match="shape: embed"):
        recipe_of(small, large).check()
    merged = result(recipe_of(small, large, vocabulary={"embed": "owners"}), tmp_path)
    assert merged["embed"][:, 0].tolist() == [2.0] * 4 + [3.0] * 2
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"rows": 6}  # whose shapes fit
    common = result(recipe_of(large, small, vocabulary={"embed": "common"}), tmp_path, "common")
    assert common["embed"].tolist() == torch.full((4, 2), 2.0).tolist()
    alone = result(recipe_of(small, large, weights=(1.0, 0.0), vocabulary={"embed": "owners"}), tmp_path, "alone")
    assert alone["embed"].shape == (4, 2)
    with pytest.raises(UserError, match=r"'embed' is F32 \[6, 2\]"):
        recipe_of(small, large, vocabulary={"head.weight": "owners"}).check()


def test_other_shapes_are_never_merged(tmp_path):
    a = save(tmp_path / "a", numbers(1) | {"embed": torch.ones(4, 2)})
    b = save(tmp_path / "b", numbers(3) | {"embed": torch.ones(6, 3)})
    with pytest.raises(UserError, match=r"'embed' is F32 \[6, 3\] in 'b', F32 \[4, 2\] in 'a'"):
        recipe_of(a, b, vocabulary={"embed": "owners"}).check()


def test_tied_tensors_stay_equal_whatever_the_method(tmp_path):
    def tied(seed):
        weight = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed))
        return {"embed": weight, "head": weight.clone()}

    a, b, base = (save(tmp_path / n, tied(seed)) for seed, n in enumerate(("a", "b", "base")))
    dare = ("dare", {"density": 0.5})
    untied = result(recipe_of(a, b, method=dare, base=base), tmp_path)
    assert not torch.equal(untied["embed"], untied["head"])
    merged = result(recipe_of(a, b, method=dare, base=base, tied=[["embed", "head"]]), tmp_path, "tied")
    assert torch.equal(merged["embed"], merged["head"])
    with pytest.raises(UserError, match="tied, but differ"):
        recipe_of(a, b, rules=[Rule("head", ((1.0,), (0.0,)))], tied=[["embed", "head"]]).check()


def test_tensors_that_share_memory_in_all_files_are_tied(tmp_path):
    for seed, name in enumerate(("a", "b", "base")):
        weight = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed))
        torch.save({"embed": weight, "head": weight}, tmp_path / f"{name}.pt")
    a, b, base = (open_checkpoint(tmp_path / f"{name}.pt") for name in ("a", "b", "base"))
    recipe = recipe_of(a, b, method=("dare", {"density": 0.5}), base=base)
    assert recipe.actions["head"].source == "embed"
    merged = result(recipe, tmp_path)
    assert torch.equal(merged["embed"], merged["head"])


def test_names_that_only_one_model_ties_are_tied_or_untied_by_name(tmp_path):
    weight = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    torch.save({"embed": weight, "head": weight}, tmp_path / "a.pt")
    torch.save({"embed": weight + 1, "head": weight + 2}, tmp_path / "b.pt")
    a, b = (open_checkpoint(tmp_path / f"{name}.pt") for name in "ab")
    for first, second in ((a, b), (b, a)):
        with pytest.raises(UserError, match="'head' is 'embed' in 'a', and a tensor of its own in 'b'"):
            recipe_of(first, second).check()
    apart = result(recipe_of(a, b, untied=[["embed", "head"]]), tmp_path, "apart")
    torch.testing.assert_close(apart["head"], weight + 1)
    one = result(recipe_of(a, b, tied=[["embed", "head"]]), tmp_path, "one")
    torch.testing.assert_close(one["head"], weight + 0.5)
    assert recipe_of(a, a, untied=[["embed", "head"]]).actions["head"].how == "merge"
    with pytest.raises(UserError, match="tied tensors not found: haed"):
        recipe_of(a, b, untied=[["embed", "haed"]]).check()


def test_sweeps_from_before_a_policy_was_added_are_found_again():
    assert list(Policies(dtype="F32").described()) == [
        "batch_norm",
        "recompute",
        "recompute_args",
        "keys",
        "vocabulary",
        "tied",
        "dtype",
    ]
    assert Policies(untied=[["a", "b"]]).described()["untied"] == [["a", "b"]]


def test_a_dtype_permits_and_decides(tmp_path):
    a = save(tmp_path / "a", numbers(1))
    b = save(tmp_path / "b", {name: tensor.bfloat16() for name, tensor in numbers(3).items()})
    with pytest.raises(UserError, match="dtype"):
        recipe_of(a, b).check()
    merged = result(recipe_of(a, b, weights=(0.25, 0.75), dtype="F16"), tmp_path)
    assert (merged["head.weight"].dtype, merged["head.weight"][0, 0].item()) == (torch.float16, 2.5)
    assert plan(recipe_of(a, b, dtype="F16"))["dtypes"] == ["F16"]


# Batch norm


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.norm(self.drop(self.linear(x)))


def net(seed):
    torch.manual_seed(seed)
    model = Net()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    model.norm.num_batches_tracked.fill_(seed)
    return model


def batches():
    return torch.randn(4, 10, 2, generator=torch.Generator().manual_seed(7)) * 3 + 1


def loaded(checkpoint_path, count=4):
    """Return the model of a merged checkpoint and its batches: what recompute asks for."""
    model = Net()
    model.load_state_dict(open_checkpoint(checkpoint_path).load())
    return model.train(), batches()[:count]


def unloaded(checkpoint_path):
    return Net(), batches()


def wider(checkpoint_path):
    model = Net()
    model.linear = torch.nn.Linear(2, 99)
    return model, batches()


def test_recomputing_with_another_model_is_refused(tmp_path):
    a, b = (save(tmp_path / n, net(seed).state_dict()) for seed, n in ((1, "a"), (2, "b")))
    policies = {"batch_norm": "recompute", "recompute": f"{__name__}:wider"}
    with pytest.raises(UserError, match=r"in another shape: linear\.bias .*linear\.weight"):
        merge(recipe_of(a, b, integers="max", **policies), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_recomputed_statistics_are_the_means_over_batches_and_modes_are_restored():
    model = net(1).train()
    momentum = model.norm.momentum
    assert recompute(model, batches()) == 4
    inputs = [model.linear(batch) for batch in batches()]
    torch.testing.assert_close(model.norm.running_mean, torch.stack([x.mean(0) for x in inputs]).mean(0))
    torch.testing.assert_close(model.norm.running_var, torch.stack([x.var(0) for x in inputs]).mean(0))
    assert model.norm.momentum == momentum
    assert model.training
    assert model.drop.training
    for batch in ([batches()[0]], {"x": batches()[0]}):
        recompute(model, [batch])
    with pytest.raises(UserError, match="no batches"):
        recompute(model, [])
    with pytest.raises(UserError, match="no batch norm"):
        recompute(torch.nn.Linear(2, 2), batches())


def test_policies_for_batch_norm_statistics(tmp_path):
    a, b, base = (save(tmp_path / n, net(seed).state_dict()) for seed, n in ((1, "a"), (2, "b"), (3, "base")))
    states = [checkpoint.load() for checkpoint in (a, b, base)]

    def merged(name, **policies):
        recipe = recipe_of(a, b, weights=(0.8, 0.8), method="task_arithmetic", base=base, integers="max", **policies)
        return result(recipe, tmp_path, name)

    var = "norm.running_var"
    as_weights = states[2][var] + 0.8 * (states[0][var] - states[2][var]) + 0.8 * (states[1][var] - states[2][var])
    torch.testing.assert_close(merged("merge")[var], as_weights)
    torch.testing.assert_close(
        merged("interpolate", batch_norm="interpolate")[var], (states[0][var] + states[1][var]) / 2
    )
    taken = merged("from", batch_norm="from:b")
    assert torch.equal(taken[var], states[1][var])
    assert taken["norm.num_batches_tracked"].item() == 2


def test_recomputing_replaces_the_statistics_and_nothing_else(tmp_path):
    a, b = (save(tmp_path / n, net(seed).state_dict()) for seed, n in ((1, "a"), (2, "b")))
    policies = {"batch_norm": "recompute", "recompute": f"{__name__}:loaded", "recompute_args": {"count": 3}}
    merged = result(recipe_of(a, b, integers="max", **policies), tmp_path)
    plain = result(recipe_of(a, b, integers="max"), tmp_path, "plain")
    model = Net()
    model.load_state_dict(plain)
    recompute(model, batches()[:3])
    for name, tensor in model.state_dict().items():
        if "running" in name:
            assert torch.equal(merged[name], tensor)
            assert not torch.equal(merged[name], plain[name])
        else:
            assert torch.equal(merged[name], plain[name])
    assert "norm.running_mean" in (tmp_path / "out" / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("function", ["loaded", "unloaded"])  # what it does not load is written into its model
def test_recomputing_at_an_endpoint_is_recomputing_that_model(tmp_path, function):
    a, b = (save(tmp_path / n, net(seed).state_dict()) for seed, n in ((1, "a"), (2, "b")))
    policies = {"batch_norm": "recompute", "recompute": f"{__name__}:{function}"}
    merged = result(recipe_of(a, b, weights=(1.0, 0.0), integers="max", **policies), tmp_path)
    model = net(1)
    recompute(model, batches())
    assert torch.equal(merged["norm.running_var"], model.norm.running_var)


# Further tensors


def test_fisher_and_regmean_read_a_folder_per_model(two):
    save(two / "fa", numbers(1)), save(two / "fb", numbers(3))
    models = "models: {a: {path: a, extra: fa}, b: {path: b, extra: fb}}"
    recipe = load_recipe(write(two, f"{{method: fisher, {models}}}"))
    merged = result(recipe, two)
    assert merged["head.weight"].unique().tolist() == [2.5]  # (1 * 1 + 3 * 3) / 4
    assert '"extra_sha256"' in (two / "out" / "README.md").read_text()
    save(two / "ga", {"head.weight": torch.eye(2)}), save(two / "gb", {"head.weight": 3 * torch.eye(2)})
    models = "models: {a: {path: a, extra: ga}, b: {path: b, extra: gb}}"
    merged = result(load_recipe(write(two, f"{{method: regmean, {models}}}")), two, "regmean")
    assert merged["head.weight"].tolist() == [pytest.approx([2.5, 2.5], rel=1e-5)] * 2
    assert merged["encoder.embed.weight"].unique().tolist() == [2.0]  # no Gram matrix: the mean
    with pytest.raises(UserError, match="missing or of another shape for 7 parameters"):
        load_recipe(write(two, f"{{method: fisher, {models}}}")).check()


@pytest.mark.parametrize(
    ("name", "scale"),
    [("l.weight", "l.weight_scale_inv"), ("l.weight", "l.weight_scale"), ("w", "w_scale"), ("l.w", "l.weight_scale")],
)
def test_float8_with_scales_is_refused_by_name(tmp_path, name, scale):
    def model(number, **others):
        return save(tmp_path / f"m{number}", {name: torch.full((2, 2), number).to(torch.float8_e4m3fn), **others})

    scaled = [model(number, **{scale: torch.ones(1)}) for number in (1, 2)]
    for weights, policies in (((0.5, 0.5), {}), ((0.5, 0.5), {"dtype": "F32"}), ((1.0, 0.0), {})):
        with pytest.raises(UserError, match=f"'{name}' of 'm1' is quantised: .* by '{scale}'"):
            recipe_of(*scaled, weights=weights, **policies).check()
    plain = [model(3), model(1.5)]  # float8 alone is a dtype like others
    assert result(recipe_of(*plain), tmp_path)[name].float().unique().tolist() == [2.25]


# mergekit


def mergekit(method="linear", **changes):
    models = [{"model": "x/a", "parameters": {"weight": 1}}, {"model": "x/b", "parameters": {"weight": 3}}]
    return {"merge_method": method, "models": models, **changes}


def test_a_linear_recipe_of_mergekit_is_normalised():
    recipe = from_mergekit(mergekit(dtype="bfloat16"), "here")
    assert recipe["models"] == {"a": "x/a", "b": "x/b"}
    assert recipe["weights"] == {"a": 0.25, "b": 0.75}
    assert recipe["policies"] == {"dtype": "BF16"}


def test_a_slerp_recipe_of_mergekit_starts_at_its_base():
    t = [{"filter": "mlp", "value": 0.2}, {"value": 0.6}]
    models = [{"model": "x/b"}, {"model": "x/a"}]
    data = {"merge_method": "slerp", "base_model": "x/a", "models": models, "parameters": {"t": t}}
    recipe = from_mergekit(data, "here")
    assert recipe["weights"] == {"a": 0.4, "b": 0.6}
    assert recipe["coefficients"] == [{"tensors": ".*mlp.*", "weights": {"a": 0.8, "b": 0.2}}]


def test_parameters_of_mergekit_have_our_names():
    shared = {"density": 0.4, "epsilon": 0.1, "lambda": 0.5, "int8_mask": True}
    recipe = from_mergekit(mergekit("della_linear", base_model="x/c", parameters=shared), "here")
    assert recipe["params"] == {"density": 0.4, "spread": 0.2, "scale": 0.5, "elect": False}
    assert recipe["method"] == "della"
    same = [{"model": f"x/{n}", "parameters": {"weight": 1, "density": 0.3}} for n in "ab"]
    ties = from_mergekit({"merge_method": "ties", "base_model": "x/c", "models": same}, "here")
    assert ties["params"] == {"density": 0.3, "normalize": True}
    assert ties["base"] == "x/c"


@pytest.fixture
def layered(tmp_path):
    names = [f"model.layers.{layer}.{part}" for layer in range(5) for part in ("self_attn.q", "mlp.up")]
    for seed, model in enumerate("ab"):
        tensors = {name: torch.full((2,), float(seed)) for name in (*names, "model.embed", "lm_head")}
        save(tmp_path / model, tensors)
    return [str(tmp_path / model) for model in "ab"]


def shares(recipe, model="b"):
    """Return the coefficient of a model by tensor."""
    built = build_recipe(RecipeSection.model_validate(recipe))
    index = [checkpoint.name for checkpoint in built.checkpoints].index(model)
    return {name: pytest.approx(action.weights[index]) for name, action in built.actions.items()}


def test_lists_over_layers_and_a_whole_slice_are_those_of_mergekit(layered):
    a, b = layered
    t = [{"filter": "self_attn", "value": [0, 0.5, 0.3]}, {"filter": "mlp", "value": [1, 0.2]}, {"value": 0.6}]
    sources = [{"model": model, "layer_range": [0, 5]} for model in layered]
    data = {"merge_method": "slerp", "base_model": a, "slices": [{"sources": sources}], "parameters": {"t": t}}
    found = shares(from_mergekit(data, "here"))
    assert [found[f"model.layers.{layer}.self_attn.q"] for layer in range(5)] == [0, 0.25, 0.5, 0.4, 0.3]
    assert [found[f"model.layers.{layer}.mlp.up"] for layer in range(5)] == [1, 0.8, 0.6, 0.4, 0.2]
    assert (found["model.embed"], found["lm_head"]) == (0.6, 0.6)
    whole = data | {"slices": [{"sources": [source | {"layer_range": [0, 4]} for source in sources]}]}
    with pytest.raises(UserError, match="a slice of 4 of 5 layers"):
        from_mergekit(whole, "here")
    models = [{"model": a, "parameters": {"weight": [1, 3]}}, {"model": b, "parameters": {"weight": 1}}]
    found = shares(from_mergekit({"merge_method": "linear", "models": models}, "here"), "a")
    assert [found[f"model.layers.{layer}.mlp.up"] for layer in range(5)] == [1 / 2, 3 / 5, 2 / 3, 5 / 7, 3 / 4]
    assert found["lm_head"] == 1 / 2  # what is in no layer is at the first depth
    t = [{"filter": "attention", "value": [0, 1]}, {"value": 0.5}]
    with pytest.raises(UserError, match="no tensor has 'attention' in its name"):
        from_mergekit(data | {"parameters": {"t": t}}, "here")
    with pytest.raises(UserError, match="no value for 'lm_head'"):
        from_mergekit(data | {"parameters": {"t": [{"filter": "layers", "value": [0, 1]}]}}, "here")


def test_a_list_over_layers_needs_one_stack_of_layers(tmp_path):
    save(tmp_path / "a", {f"{stack}.layers.0.w": torch.ones(1) for stack in ("encoder", "decoder")})
    models = [{"model": str(tmp_path / "a"), "parameters": {"weight": [0, 1]}}]
    with pytest.raises(UserError, match="layers of decoder, encoder"):
        from_mergekit({"merge_method": "linear", "models": models}, "here")
    save(tmp_path / "b", {"w": torch.ones(1)})
    models = [{"model": str(tmp_path / "b"), "parameters": {"weight": [0, 1]}}]
    with pytest.raises(UserError, match="no layers"):
        from_mergekit({"merge_method": "linear", "models": models}, "here")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (mergekit("passthrough"), "merge_method: passthrough"),
        ({"merge_method": "linear", "slices": []}, "layers that are put together anew"),
        (mergekit(slices=[{"sources": []}]), "layers that are put together anew"),
        ({"merge_method": "linear", "slices": [{"sources": []}]}, "slices that are parts of models"),
        (
            {"merge_method": "linear", "slices": [{"sources": [{"model": "x", "layer_range": [1, 2]}]}]},
            "slices that are parts of models",
        ),
        (mergekit(tokenizer_source="union"), "tokenizer_source"),
        (mergekit(dtype="int8"), "dtype: int8"),
        (mergekit(parameters={"t": 1}), "parameters: t"),
        (mergekit("ties", base_model="x/c", parameters={"rescale": True}), "rescale: true with ties"),
        (mergekit("dare_ties", base_model="x/c", parameters={"normalize": True}), "normalize with dare and signs"),
        ({"merge_method": "linear", "models": [mergekit()["models"][0]] * 2}, "a model that is given twice, x/a"),
        (mergekit("ties", base_model="x/c", parameters={"density": [0, 1]}), r"density: \[0, 1\]"),
        ({"merge_method": "linear", "models": [{"model": "a"}]}, "no weight for a"),
        (
            {
                "merge_method": "ties",
                "base_model": "c",
                "models": [
                    {"model": "a", "parameters": {"weight": 1, "density": 0.1}},
                    {"model": "b", "parameters": {"weight": 1, "density": 0.2}},
                ],
            },
            "density that differs",
        ),
    ],
)
def test_what_would_differ_from_mergekit_is_refused(data, message):
    with pytest.raises(UserError, match=f"not shared with mergekit: .*{message}"):
        from_mergekit(data, "here")


def test_a_della_recipe_of_mergekit_is_an_average_unless_it_says_otherwise(two):
    start, a, b = torch.zeros(3), torch.tensor([1.0, 2.0, -3.0]), torch.tensor([3.0, -1.0, -1.0])
    for name, value in (("start", start), ("a2", a), ("b2", b)):
        save(two / name, {"w": value})
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in (("a2", 1.0), ("b2", 3.0))]
    expected = {True: [10 / 4, -1.0, -6 / 4], False: [10.0, -3.0, -6.0]}  # of those with the sign of the sum
    for number, parameters in enumerate(({}, {"normalize": True}, {"normalize": False})):
        data = {"merge_method": "della", "base_model": "start", "models": models, "parameters": parameters}
        path = write(two, json.dumps(data))
        found = result(load_recipe(path), two, f"out{number}")["w"].tolist()
        assert found == expected[parameters.get("normalize", True)]
    linear = from_mergekit({**data, "merge_method": "della_linear", "parameters": {"normalize": True}}, "here")
    assert linear["weights"] == {"a2": 0.25, "b2": 0.75}
    assert "normalize" not in linear["params"]


def test_a_file_of_mergekit_is_merged(two):
    text = """
merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 3}}
"""
    assert result(load_recipe(write(two, text)), two)["head.weight"].unique().tolist() == [2.5]


# Command line


def run(*arguments):
    return CliRunner().invoke(app, ["merge", *arguments])


def test_the_command_explains_plans_and_merges_a_recipe(two):
    write(two, "{models: {a: a, b: b}, weights: {a: 0.25, b: 0.75}}")
    explained = run("recipe.yaml", "--explain", "--json")
    assert json.loads(explained.stdout)["tensors"][-1]["coefficients"] == {"a": 0.25, "b": 0.75}
    assert run("recipe.yaml", "--explain").stdout.splitlines()[0].split() == [
        *("tensor", "of", "action", "coefficients", "policy")
    ]
    assert run("recipe.yaml", "-o", "out").exit_code == 0
    assert open_checkpoint("out").load()["head.weight"].unique().tolist() == [2.5]


def test_the_command_refuses_flags_beside_a_recipe_and_no_output(two):
    write(two, "{models: {a: a, b: b}}")
    for arguments in (("recipe.yaml", "-o", "out", "--weights", "1,0"), ("recipe.yaml",), ("a", "b")):
        assert run(*arguments).exit_code == 2
    assert not (two / "out").exists()
