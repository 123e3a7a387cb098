"""An adapter over its base is the weights that PEFT would make; mixtures of adapters are exact, or say how far off."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from soups.adapters import merge_adapters
from soups.errors import UserError
from soups.merge import Recipe, merge
from soups.methods import get_method
from soups.state import open_checkpoint

PREFIX = "base_model.model."


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def save_base(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {
        "enc.proj.weight": draw(1, 6, 4),
        "enc.proj.bias": draw(2, 6),
        "enc.gpt.weight": draw(3, 4, 5),  # a Conv1D of GPT-2: (in, out)
        "enc.square.weight": draw(4, 4, 4),
        "embed.weight": draw(5, 7, 4),
        "conv.weight": draw(6, 3, 2, 3, 3),
        "head.weight": draw(7, 2, 6),
        "steps": torch.tensor(3),
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return tensors


def factors(seed: int, rank: int, dora: bool = False) -> dict[str, torch.Tensor]:
    tensors = {
        "enc.proj.lora_A.weight": draw(seed + 1, rank, 4),
        "enc.proj.lora_B.weight": draw(seed + 2, 6, rank),
        "enc.gpt.lora_A.weight": draw(seed + 3, rank, 4),
        "enc.gpt.lora_B.weight": draw(seed + 4, 5, rank),
        "enc.proj.bias": draw(seed + 9, 6),
        "head.weight": draw(seed + 10, 2, 6),
    }
    if dora:
        tensors |= {
            "enc.proj.lora_magnitude_vector": draw(seed + 11, 6).abs(),
            "enc.gpt.lora_magnitude_vector": draw(seed + 12, 5).abs(),
        }
    else:
        tensors |= {
            "embed.lora_embedding_A": draw(seed + 5, rank, 7),
            "embed.lora_embedding_B": draw(seed + 6, 4, rank),
            "conv.lora_A.weight": draw(seed + 7, rank, 2, 3, 3),
            "conv.lora_B.weight": draw(seed + 8, 3, rank, 1, 1),
        }
    return tensors


def save_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir()
    save_file({PREFIX + name: tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "base_model_name_or_path": str(folder.parent / "base")}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def merged_by_hand(
    base: dict[str, torch.Tensor], low: dict[str, torch.Tensor], scale: float
) -> dict[str, torch.Tensor]:
    wide = {name: tensor.double() for name, tensor in low.items()}
    result = {name: tensor.double() for name, tensor in base.items()}
    result["enc.proj.weight"] += scale * wide["enc.proj.lora_B.weight"] @ wide["enc.proj.lora_A.weight"]
    result["enc.gpt.weight"] += scale * (wide["enc.gpt.lora_B.weight"] @ wide["enc.gpt.lora_A.weight"]).t()
    if "embed.lora_embedding_A" in wide:
        result["embed.weight"] += scale * (wide["embed.lora_embedding_B"] @ wide["embed.lora_embedding_A"]).t()
        result["conv.weight"] += scale * torch.einsum(
            "or,rikl->oikl", wide["conv.lora_B.weight"][:, :, 0, 0], wide["conv.lora_A.weight"]
        )
    result["enc.proj.bias"], result["head.weight"] = wide["enc.proj.bias"], wide["head.weight"]
    return {name: result[name].to(base[name].dtype) for name in base}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # float32 rounding of sums of a few terms of order 10
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_over_its_base_is_the_updated_model(tmp_path, rslora):
    base = save_base(tmp_path / "base")
    low = factors(10, 2)
    path = save_adapter(tmp_path / "a", low, use_rslora=rslora)
    checkpoint = open_checkpoint(path)
    close(checkpoint.load(), merged_by_hand(base, low, 8 / math.sqrt(2) if rslora else 4.0))
    assert set(checkpoint.file_digests) == {"adapter_model.safetensors", "model.safetensors"}
    assert checkpoint.digest != open_checkpoint(tmp_path / "base").digest


def test_alpha_may_differ_by_layer_and_rank_is_read_from_the_factors(tmp_path):
    base, low = save_base(tmp_path / "base"), factors(10, 4)
    path = save_adapter(tmp_path / "a", low, alpha_pattern={"proj": 2, "enc.gpt": 12}, lora_alpha=4)
    loaded = open_checkpoint(path).load()
    for layer, scale in (("enc.proj", 0.5), ("enc.gpt", 3.0), ("embed", 1.0)):
        close({layer: loaded[f"{layer}.weight"]}, {layer: merged_by_hand(base, low, scale)[f"{layer}.weight"]})


def test_settings_that_change_an_adapter_change_its_digest(tmp_path):
    save_base(tmp_path / "base")
    low = factors(10, 2)
    settings = ({}, {"use_rslora": True}, {"lora_alpha": 16}, {"alpha_pattern": {"proj": 2}}, {"fan_in_fan_out": True})
    for number, changes in enumerate(settings):
        save_adapter(tmp_path / str(number), low, **changes)
    digests = [open_checkpoint(tmp_path / str(number)).digest for number in range(len(settings))]
    assert len(set(digests[:4])) == 4
    assert digests[4] == digests[0]  # no square weight: it means nothing here


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_only_a_square_weight_that_nothing_tells_of_asks_the_configuration(tmp_path, fan_in_fan_out):
    weight = draw(4, 4, 4)
    save_file({"enc.square.weight": weight}, tmp_path / "base.safetensors")
    path = save_adapter(tmp_path / "a", pair("enc.square", 4, 4), fan_in_fan_out=fan_in_fan_out)
    update = (draw(2, 4, 2) @ draw(1, 2, 4)) * 4
    found = open_checkpoint(path, adapter_base=open_checkpoint(tmp_path / "base.safetensors")).load()
    close(found, {"enc.square.weight": weight + (update.t() if fan_in_fan_out else update)})


CONV1D, LINEAR = ("c_attn", (4, 12)), ("mlp.dense", (12, 4))


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize(
    ("square", "others", "has_bias", "flag", "is_transposed"),
    [
        ("attn.c_proj", [CONV1D], False, False, True),  # the last layer that PEFT visited was another
        ("attn.c_proj", [("mlp.c_proj", (16, 4)), ("lm_head", (9, 4))], True, False, True),
        ("attn.c_proj", [("mlp.c_fc", (16, 4))], False, False, False),  # linear layers of those names: StarCoder
        ("vit.query", [CONV1D, LINEAR], True, True, False),  # ViT before GPT-2
        ("attn.q_proj", [LINEAR], False, False, False),
    ],
)
def test_a_square_weight_is_stored_as_the_other_layers_of_its_kind(
    tmp_path, square, others, has_bias, flag, is_transposed, use_dora
):
    """Layers with a bias tell it without being in the adapter, but for the first, which is in the adapter alone."""
    base = {f"{square}.weight": draw(1, 4, 4)}
    for layer, shape in others:
        bias = {f"{layer}.bias": draw(4, shape[layer.rpartition(".")[2] in ("c_attn", "c_proj")])} if has_bias else {}
        base |= {f"{layer}.weight": draw(3, *shape)} | bias
    save_file(base, tmp_path / "base.safetensors")
    layer, (rows, columns) = others[0]
    inputs, outputs = (rows, columns) if layer != "mlp.c_fc" and layer != "mlp.dense" else (columns, rows)
    low = pair(square, 4, 4) | pair(layer, inputs, outputs)
    if use_dora:
        low |= {f"{square}.lora_magnitude_vector": draw(5, 4).abs(), f"{layer}.lora_magnitude_vector": draw(6, outputs)}
    path = save_adapter(tmp_path / "a", low, fan_in_fan_out=flag, use_dora=use_dora)
    found = open_checkpoint(path, adapter_base=open_checkpoint(tmp_path / "base.safetensors")).load()
    weight = base[f"{square}.weight"].double()
    weight = weight.t() if is_transposed else weight
    expected = weight + 4 * low[f"{square}.lora_B.weight"].double() @ low[f"{square}.lora_A.weight"].double()
    if use_dora:
        expected *= (low[f"{square}.lora_magnitude_vector"] / expected.norm(dim=1))[:, None]
    expected = (expected.t() if is_transposed else expected).float()
    torch.testing.assert_close(found[f"{square}.weight"], expected, rtol=1e-6, atol=1e-6)


def test_a_square_weight_of_which_layers_and_configuration_say_different_things_is_refused(tmp_path):
    base = {"enc.square.weight": draw(1, 4, 4), "enc.proj.weight": draw(2, 6, 4), "enc.proj.bias": draw(3, 6)}
    save_file(base, tmp_path / "base.safetensors")
    path = save_adapter(tmp_path / "a", pair("enc.square", 4, 4), fan_in_fan_out=True)
    with pytest.raises(UserError, match=r"'enc\.square' is square, and other layers and fan_in_fan_out do not agree"):
        open_checkpoint(path, adapter_base=open_checkpoint(tmp_path / "base.safetensors"))


def test_dora_rescales_the_rows_of_the_updated_weight(tmp_path):
    base, low = save_base(tmp_path / "base"), factors(10, 2, dora=True)
    loaded = open_checkpoint(save_adapter(tmp_path / "a", low, use_dora=True)).load()
    plain = merged_by_hand(base, low, 4.0)
    rows = plain["enc.proj.weight"].double()
    expected = low["enc.proj.lora_magnitude_vector"][:, None] * rows / rows.norm(dim=1, keepdim=True)
    close({"w": loaded["enc.proj.weight"]}, {"w": expected.float()})
    columns = plain["enc.gpt.weight"].double()
    expected = low["enc.gpt.lora_magnitude_vector"] * columns / columns.norm(dim=0)
    close({"w": loaded["enc.gpt.weight"]}, {"w": expected.float()})


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_layer_of_an_embedding_that_is_no_embedding_is_updated_as_what_it_is(tmp_path, use_dora):
    layers = {"embedding_mapping": (4, 4), "patch_embeddings.projection": (6, 4)}  # of ALBERT, of ViT
    base = {f"{layer}.weight": draw(n, *shape) for n, (layer, shape) in enumerate(layers.items())}
    save_file(base, tmp_path / "base.safetensors")
    low = {}
    for layer, (rows, columns) in layers.items():
        low |= {f"{layer}.lora_A.weight": draw(rows, 2, columns), f"{layer}.lora_B.weight": draw(rows + 1, rows, 2)}
        low |= {f"{layer}.lora_magnitude_vector": draw(rows + 2, rows).abs()} if use_dora else {}
    path = save_adapter(tmp_path / "a", low, use_dora=use_dora)
    found = open_checkpoint(path, adapter_base=open_checkpoint(tmp_path / "base.safetensors")).load()
    for layer in layers:
        b, a = (low[f"{layer}.lora_{side}.weight"].double() for side in "BA")
        expected = base[f"{layer}.weight"].double() + 4 * b @ a
        if use_dora:
            expected *= (low[f"{layer}.lora_magnitude_vector"].double() / expected.norm(dim=1))[:, None]
        torch.testing.assert_close(found[f"{layer}.weight"].double(), expected, rtol=1e-6, atol=1e-6)


def test_a_half_precision_base_gives_updates_that_are_not_rounded_to_it(tmp_path):
    base, low = save_base(tmp_path / "base"), factors(10, 2)
    save_file({n: t.bfloat16() if t.is_floating_point() else t for n, t in base.items()}, tmp_path / "h.safetensors")
    path = save_adapter(tmp_path / "a", low, base_model_name_or_path=str(tmp_path / "h.safetensors"))
    assert open_checkpoint(path).load()["enc.proj.weight"].dtype == torch.float32


def soup(tmp_path: Path, ranks=(2, 3), **config: object) -> tuple[dict, list[dict], list[Path]]:
    base, low = save_base(tmp_path / "base"), [factors(10, ranks[0]), factors(50, ranks[1])]
    paths = [save_adapter(tmp_path / name, each, **config) for name, each in zip("ab", low, strict=True)]
    return base, [merged_by_hand(base, each, 8 / rank) for each, rank in zip(low, ranks, strict=True)], paths


def test_the_soup_over_the_base_is_the_interpolation_of_the_merged_models(tmp_path):
    _, models, paths = soup(tmp_path)
    recipe = Recipe([open_checkpoint(path) for path in paths], (0.25, 0.75), get_method("linear"))
    merge(recipe, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    close(
        found,
        {n: (0.25 * models[0][n].double() + 0.75 * models[1][n].double()).to(models[0][n].dtype) for n in models[0]},
    )
    assert (tmp_path / "out" / "README.md").read_text().count("adapter_model.safetensors") == 2


@pytest.mark.parametrize("mode", ["cat", "svd-5", "svd-9", "svd-2", "factor"])
def test_one_adapter_holds_the_mixture_as_well_as_its_mode_can(tmp_path, mode):
    base, models, paths = soup(tmp_path, ranks=(2, 2) if mode == "factor" else (2, 3))
    summary = merge_adapters(paths, ["a", "b"], (0.25, 0.75), mode, tmp_path / "out")
    found = open_checkpoint(tmp_path / "out").load()
    exact = {n: 0.25 * models[0][n].double() + 0.75 * models[1][n].double() for n in models[0]}
    adapted = ["enc.proj.weight", "enc.gpt.weight", "embed.weight", "conv.weight"]
    difference = sum(float((found[n].double() - exact[n]).square().sum()) for n in adapted)
    size = sum(float((exact[n] - base[n].double()).square().sum()) for n in adapted)
    assert math.sqrt(difference / size) == pytest.approx(summary["relative_error"], rel=1e-4, abs=1e-6)
    if mode in ("cat", "svd-5", "svd-9"):
        assert summary["relative_error"] < 1e-6
    else:
        assert summary["relative_error"] > 0.05
    close(
        {n: found[n] for n in ("enc.proj.bias", "head.weight")},
        {n: exact[n].float() for n in ("enc.proj.bias", "head.weight")},
    )
    assert f"{summary['relative_error']:.2e}" in (tmp_path / "out" / "README.md").read_text()


def test_a_truncated_soup_is_the_best_of_its_rank(tmp_path):
    base, models, paths = soup(tmp_path)
    merge_adapters(paths, ["a", "b"], (0.5, 0.5), "svd-2", tmp_path / "out")
    found = open_checkpoint(tmp_path / "out").load()["enc.proj.weight"].double() - base["enc.proj.weight"].double()
    exact = sum(model["enc.proj.weight"].double() for model in models) / 2 - base["enc.proj.weight"].double()
    u, s, v = torch.linalg.svd(exact)
    torch.testing.assert_close(found, u[:, :2] * s[:2] @ v[:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["cat", "svd-2", "factor"])
def test_all_the_weight_on_one_adapter_copies_it(tmp_path, mode):
    _, _, paths = soup(tmp_path, ranks=(2, 2))
    merge_adapters(paths, ["a", "b"], (0.0, 1.0), mode, tmp_path / "out")
    found, expected = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "out", paths[1]))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_copies_stacked_are_the_adapter_itself(tmp_path):
    _, models, paths = soup(tmp_path)
    merge_adapters([paths[0], paths[0]], ["a", "b"], (0.5, 0.5), "cat", tmp_path / "out")
    close(open_checkpoint(tmp_path / "out").load(), models[0])


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4, which changes the base"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_dora": True}, "no magnitude vector"),
        ({"base_model_name_or_path": "someone/model"}, "the base of this adapter, 'someone/model', is not here"),
    ],
)
def test_adapters_that_mean_something_else_are_refused(tmp_path, config, match):
    save_base(tmp_path / "base")
    path = save_adapter(tmp_path / "a", factors(10, 2), **config)
    with pytest.raises(UserError, match=match):
        open_checkpoint(path)


def pair(layer: str, width: int, height: int) -> dict[str, torch.Tensor]:
    return {f"{layer}.lora_A.weight": draw(1, 2, width), f"{layer}.lora_B.weight": draw(2, height, 2)}


def test_adapters_that_do_not_fit_their_base_are_refused(tmp_path):
    save_base(tmp_path / "base")
    with pytest.raises(UserError, match=r"the base has no enc\.other\.weight"):
        open_checkpoint(
            save_adapter(
                tmp_path / "a", {"enc.other.lora_A.weight": draw(1, 2, 4), "enc.other.lora_B.weight": draw(2, 6, 2)}
            )
        )
    with pytest.raises(UserError, match=r"the update of 'enc\.proj' is \[9, 4\], its weight F32 \[6, 4\]"):
        open_checkpoint(
            save_adapter(
                tmp_path / "b", {"enc.proj.lora_A.weight": draw(1, 2, 4), "enc.proj.lora_B.weight": draw(2, 9, 2)}
            )
        )
    with pytest.raises(UserError, match="has only A"):
        open_checkpoint(save_adapter(tmp_path / "c", {"enc.proj.lora_A.weight": draw(1, 2, 4)}))


HEAD = {"modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_a_new_head_is_merged_over_a_base_without_it(tmp_path, prefix):
    (tmp_path / "base").mkdir()
    base = {"enc.weight": draw(1, 6, 4), "enc.bias": draw(2, 6)}
    save_file({prefix + name: tensor for name, tensor in base.items()}, tmp_path / "base" / "model.safetensors")
    expected = dict.fromkeys(["bert.enc.weight", "bert.enc.bias", "classifier.weight"], torch.zeros(1).double())
    paths = []
    for name, weight in (("a", 0.25), ("b", 0.75)):
        low = {f"bert.{layer}": t for layer, t in pair("enc", 4, 6).items()} | {"bert.enc.bias": draw(len(paths), 6)}
        low["classifier.weight"] = draw(7 + len(paths), 3, 4)
        paths.append(save_adapter(tmp_path / name, low, lora_alpha=len(paths) + 1, **HEAD))
        update = low["bert.enc.lora_B.weight"].double() @ low["bert.enc.lora_A.weight"].double() * len(paths) / 2
        model = {"bert.enc.weight": base["enc.weight"] + update, **{n: low[n] for n in list(expected)[1:]}}
        expected = {n: expected[n] + weight * model[n].double() for n in expected}
    checkpoints = [open_checkpoint(path) for path in paths]
    assert checkpoints[0].added == ["classifier.weight"]
    merge(Recipe(checkpoints, (0.25, 0.75), get_method("linear")), tmp_path / "out")
    # As the model with the head names them: transformers 4 drops a head among the names of a bare encoder.
    close(load_file(tmp_path / "out" / "model.safetensors"), {n: t.float() for n, t in expected.items()})
    assert "The base has no `classifier.weight`: load this" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["clasifier.weight", "bert.enc.bais", "enc.other.lora"])
def test_a_name_by_mistake_is_no_new_head(tmp_path, name):
    (tmp_path / "base").mkdir()
    save_file({"bert.enc.weight": draw(1, 6, 4)}, tmp_path / "base" / "model.safetensors")
    low = {f"bert.{layer}": t for layer, t in pair("enc", 4, 6).items()} | {"classifier.weight": draw(1, 3, 4)}
    low |= pair("enc.other", 4, 6) if name.endswith("lora") else {name: draw(1, 6)}
    with pytest.raises(UserError, match=f"the base has no {name.removesuffix('.lora')}"):
        open_checkpoint(save_adapter(tmp_path / "a", low, **HEAD))
    with pytest.raises(UserError, match=r"the base has no classifier\.weight"):  # nothing of it is in the base
        open_checkpoint(save_adapter(tmp_path / "b", {"classifier.weight": draw(1, 3, 4)}, **HEAD))


@pytest.mark.parametrize("mode", ["cat", "svd-4", "factor"])
def test_tensors_stored_whole_are_not_summed(tmp_path, mode):
    _, _, paths = soup(tmp_path, ranks=(2, 2))
    with pytest.raises(UserError, match=r"sum to 2, and 'enc\.proj\.bias' is stored whole") as error:
        merge_adapters(paths, ["a", "b"], (1.0, 1.0), mode, tmp_path / "out", extrapolate=True)
    assert "--method task_arithmetic --base DIR" in error.value.fix
    assert not (tmp_path / "out").exists()


def test_updates_alone_may_be_summed(tmp_path):
    base = save_base(tmp_path / "base")
    low = [{n: t for n, t in factors(seed, 2).items() if ".lora_" in n} for seed in (10, 50)]
    paths = [save_adapter(tmp_path / name, each) for name, each in zip("ab", low, strict=True)]
    merge_adapters(paths, ["a", "b"], (1.0, 1.0), "cat", tmp_path / "out", extrapolate=True)
    update = sum(each["enc.proj.lora_B.weight"].double() @ each["enc.proj.lora_A.weight"].double() for each in low)
    expected = base["enc.proj.weight"].double() + 4 * update
    close({"w": open_checkpoint(tmp_path / "out").load()["enc.proj.weight"]}, {"w": expected.float()})


def test_modes_that_cannot_hold_the_mixture_are_refused(tmp_path):
    _, _, paths = soup(tmp_path)
    dora = save_adapter(tmp_path / "dora", factors(10, 2, dora=True), use_dora=True)
    for given, mode, match in (
        (paths, "factor", "has rank 3, scale 2.66667 in 'b', but rank 2, scale 4 in the first"),
        (paths, "svd", "unknown mode 'svd'"),
        (paths, "svd-0", "unknown mode 'svd-0'"),
        ([dora, dora], "cat", "is a DoRA"),
        ([paths[0], save_adapter(tmp_path / "c", {"head.weight": draw(1, 2, 6)})], "cat", "change different tensors"),
    ):
        with pytest.raises(UserError, match=match):
            merge_adapters(given, ["a", "b"], (0.5, 0.5), mode, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(4, 6)
        self.embed = torch.nn.Embedding(7, 4)
        self.conv = torch.nn.Conv2d(2, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora", "bias", "patterns"])
def test_the_weights_are_those_of_peft(tmp_path, variant):
    peft = pytest.importorskip("peft")
    options = {
        "plain": {},
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True, "target_modules": ["proj"]},
        "bias": {"bias": "all"},
        "patterns": {"rank_pattern": {"proj": 3}, "alpha_pattern": {"conv": 2}},
    }[variant]
    torch.manual_seed(0)
    net = Net()
    save_file(net.state_dict(), tmp_path / "base.safetensors")
    targets = {"target_modules": ["proj", "embed", "conv"], "init_lora_weights": False}
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, lora_alpha=5, **(targets | options)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(tmp_path / "a")
    loaded = open_checkpoint(tmp_path / "a", adapter_base=open_checkpoint(tmp_path / "base.safetensors")).load()
    close(loaded, dict(model.merge_and_unload().state_dict()))
