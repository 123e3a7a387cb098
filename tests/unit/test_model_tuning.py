"""Adapters, learned prefixes and LoRA: what they compute, their names, that the rest stays frozen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests import tiny
from unival.batch import Batch, Example, Modality
from unival.checkpoint import load_model, save_model
from unival.errors import UserError
from unival.generate import score_answers
from unival.model.layers import Attention, EncoderLayer
from unival.model.linear import Linear, onto_rows
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.tuning import Adapter, LowRankLinear, PrefixEncoder, TwinAdapter
from unival.objectives.cross_entropy import Objective as CrossEntropy
from unival.schema import OptimConfig, StageConfig
from unival.training.building import rebuild
from unival.training.optim import build_optimizer, freeze

PROMPT = torch.tensor([[5, 6, 7], [8, 9, 1]])
PREFIX = torch.tensor([[0, 31, 12], [0, 8, 40]])


def stage(**fields: Any) -> StageConfig:
    task = {"task": "caption", "source": {"world": "train"}}
    return StageConfig.model_validate({"name": "a", "steps": 1, "groups": [{"rows": 1, "tasks": [task]}]} | fields)


def logits(model: UnivalForConditionalGeneration) -> torch.Tensor:
    return model(input_ids=PROMPT, decoder_input_ids=PREFIX, **tiny.media("image", 2)).logits


def new_names(**changes: Any) -> set[str]:
    return set(tiny.build_model(**changes).state_dict()) - set(tiny.model().state_dict())


def test_an_adapter_is_a_bottleneck_with_a_residual() -> None:
    adapter, x = Adapter(6, 3).double(), torch.randn(2, 4, 6).double()
    hidden = (x @ adapter.down_proj.weight.T + adapter.down_proj.bias).clamp(min=0)
    expected = hidden @ adapter.up_proj.weight.T + adapter.up_proj.bias + x
    torch.testing.assert_close(adapter(x), expected, atol=1e-12, rtol=1e-12)


def test_a_twin_adapter_treats_media_and_text_apart() -> None:
    adapter, x = TwinAdapter(6, 3).double(), torch.randn(2, 5, 6).double()
    out = adapter(x, num_media=2)
    assert torch.equal(out[:, :2], adapter.v_adapter(x[:, :2]))
    assert torch.equal(out[:, 2:], adapter.l_adapter(x[:, 2:]))


def test_a_layer_adapts_the_feed_forward_branch_before_the_residual() -> None:
    adapter = Adapter(8, 3)
    layer = EncoderLayer(8, 2, 16, 2.0, 0.0, 0.0, adapter).double()
    x, bias = torch.randn(2, 3, 8).double(), torch.randn(1, 2, 3, 3).double()
    middle = x + layer.attn_ln(layer.self_attn(layer.self_attn_layer_norm(x), bias))
    expected = middle + adapter(layer.feed_forward(middle))
    torch.testing.assert_close(layer(x, bias), expected, atol=1e-12, rtol=1e-12)


def test_adapters_have_the_originals_names() -> None:
    parts = [f"{half}_proj.{kind}" for half in ("down", "up") for kind in ("weight", "bias")]
    plain = {f"{s}.layers.{i}.adapter.{p}" for s in ("encoder", "decoder") for i in (0, 1) for p in parts}
    assert new_names(adapter_dim=4) == plain
    twins = {f"encoder.layers.{i}.adapter.{m}_adapter.{p}" for i in (0, 1) for m in "vl" for p in parts}
    assert new_names(adapter_dim=4, adapter_per_modality=True) == twins | {n for n in plain if n.startswith("decoder")}


def test_prefixes_have_the_originals_names_and_shapes() -> None:
    lengths = {"encoder_prompt_length": 5, "decoder_prompt_length": 3}
    free = {f"{side}.{side}_prompt_encoder.embedding.weight" for side in ("encoder", "decoder")}
    assert new_names(**lengths) == free
    network = {f"{s}.{s}_prompt_encoder.trans.{i}.{p}" for s in ("encoder", "decoder") for i in (0, 2) for p in ("weight", "bias")}  # fmt: skip  # noqa: E501
    assert new_names(**lengths, prompt_hidden_dim=7) == free | network
    state = tiny.build_model(**lengths, prompt_hidden_dim=7).state_dict()
    assert state["encoder.encoder_prompt_encoder.embedding.weight"].shape == (5, 16)
    assert state["encoder.encoder_prompt_encoder.trans.2.weight"].shape == (2 * 2 * 16, 7)
    assert tiny.build_model(**lengths).state_dict()[min(free)].shape == (3, 2 * 2 * 16)


def test_a_prefix_is_laid_out_as_in_the_original() -> None:
    """The original reshapes each row to (2 x layers, heads, head width) and takes keys and values in turn."""
    prefix = PrefixEncoder(d_model=6, num_layers=2, num_heads=3, length=4).eval()
    for layer, (key, value) in enumerate(prefix()):
        for found, half in ((key, 0), (value, 1)):
            rows = prefix.embedding.weight.view(4, 4, 3, 2)[:, 2 * layer + half]  # N H K
            assert torch.equal(found, rows.transpose(0, 1)[None])
    hidden = PrefixEncoder(6, 2, 3, 4, hidden_dim=5).eval()
    assert hidden.trans is not None
    assert torch.equal(hidden()[1][0][0, 2, :, 0], hidden.trans(hidden.embedding.weight)[:, 16])


def test_attention_reads_prefixes_as_unbiased_keys_before_its_own() -> None:
    attention = Attention(12, 3, 2.0, 0).double()
    x, bias = torch.randn(2, 5, 12).double(), torch.randn(2, 3, 5, 5).double()
    key, value = torch.randn(2, 1, 3, 4, 4).double()
    own_key, own_value = attention.split_heads(attention.k_proj(x)), attention.split_heads(attention.v_proj(x))
    keys, values = (torch.cat([a.expand(2, -1, -1, -1), b], 2) for a, b in ((key, own_key), (value, own_value)))
    scores = attention.split_heads(attention.q_proj(x)) * (4 * 2.0) ** -0.5 @ keys.mT + F.pad(bias, (4, 0))
    expected = attention.out_proj((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, bias, prefix=(key, value)), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("beams", [1, 3])
def test_search_with_prefixes_and_adapters_is_the_uncached_one(beams: int) -> None:
    model = tiny.build_model(adapter_dim=4, adapter_per_modality=True, encoder_prompt_length=3, decoder_prompt_length=2)
    assert (logits(model) - logits(tiny.model())).abs().max() > 0.1
    options = {"do_sample": False, "max_new_tokens": 8, "num_beams": beams, **tiny.media("image", 2)}
    found = model.generate(PROMPT, **options)
    assert torch.equal(found, model.generate(PROMPT, **options, use_cache=False))


def test_tuned_parts_are_saved_with_the_model(tmp_path: Path) -> None:
    model = tiny.build_model(adapter_dim=4, encoder_prompt_length=3, prompt_hidden_dim=5)
    loaded, _ = load_model(save_model(tmp_path / "model", model, tiny.processor()))
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("changes", "patterns", "part"),
    [
        ({"adapter_dim": 4}, ["*.adapter."], ".adapter."),
        ({"encoder_prompt_length": 3, "decoder_prompt_length": 2}, ["*_prompt_encoder."], "_prompt_encoder."),
    ],
)
def test_tuning_a_part_changes_that_part_only(changes: dict[str, Any], patterns: list[str], part: str) -> None:
    model = tiny.build_model(**changes).train()
    freeze(model, stage(train_only=patterns))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimConfig(lr=0.1))
    model.eval()  # batch statistics are not parameters
    logits(model).logsumexp(-1).sum().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if part in name}


def test_only_linear_trains_projections_and_media_positions() -> None:
    """The original's `onlylinear` recipes (specification 2.10): what stays trainable with everything else frozen."""
    model = tiny.build_model()
    chosen = [f"encoder.{m}_proj." for m in ("image", "video")] + [f"encoder.embed_{m}_positions." for m in ("image", "video")]  # fmt: skip  # noqa: E501
    freeze(model, stage(train_only=chosen))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(tuple(chosen))}
    assert len(trained) == 6


def test_freezing_wins_over_training_and_patterns_must_match() -> None:
    model = tiny.build_model()
    freeze(model, stage(train_only=["encoder."], freeze=["encoder.layers.*.fc1", "encoder.embed_audios."]))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "encoder.layers.0.fc2.weight" in trained
    assert not any(".fc1." in name or "embed_audios" in name or name.startswith("decoder") for name in trained)
    with pytest.raises(UserError, match=r"train_only: no parameter starts with '\*\.adapter\.'"):
        freeze(model, stage(train_only=["*.adapter."]))
    with pytest.raises(UserError, match="nothing is left to train"):
        freeze(model, stage(freeze=["encoder", "decoder"]))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_lora_trains_merges_and_changes_every_path(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "cross_pos_k_linear"], init_lora_weights=False)
    model = peft.get_peft_model(tiny.build_model(), config)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)
    logits(model.eval()).sum().backward()  # batch statistics are not parameters
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(trained)
    tuned = logits(model).detach()
    assert (tuned - logits(tiny.model())).abs().max() > 1e-2
    options = {"do_sample": False, "max_new_tokens": 8, "num_beams": 2, **tiny.media("image", 2)}
    found = model.generate(input_ids=PROMPT, **options)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny.build_model(), tmp_path).eval()
    torch.testing.assert_close(logits(again), tuned, atol=1e-5, rtol=1e-5)
    merged = again.merge_and_unload()
    torch.testing.assert_close(logits(merged), tuned, atol=1e-4, rtol=1e-4)
    assert torch.equal(merged.generate(input_ids=PROMPT, **options), found)


@pytest.mark.parametrize(
    ("table", "modality", "codes"),
    [
        ("encoder.embed_positions", "text", False),
        ("encoder.type_embedding", "text", False),
        ("encoder.embed_image_positions", "image", False),
        ("encoder.embed_video_positions", "video", False),
        ("encoder.embed_audio_positions", "audio", False),
        ("encoder.token_rel_pos_table_list.0", "text", False),
        ("encoder.image_rel_pos_table_list.1", "image", False),
        ("encoder.encoder_prompt_encoder.embedding", "text", False),
        ("decoder.embed_positions", "text", False),
        ("decoder.token_rel_pos_table_list.1", "text", False),
        ("decoder.embed_image_positions", "text", True),
        ("decoder.image_rel_pos_table_list.0", "text", True),
    ],
)
def test_an_embedding_that_is_wrapped_is_called(table: str, modality: Modality, codes: bool) -> None:
    """As PEFT does: its LoRA and `modules_to_save` put a module around the one it changes."""
    inputs = {"input_ids": PROMPT, "decoder_input_ids": PREFIX, "writes_codes": codes, **tiny.media(modality, 2)}
    model = tiny.build_model(encoder_prompt_length=2)
    with torch.no_grad():
        expected = model(**inputs).logits
        model.set_submodule(table, Shifted(model.get_submodule(table)))
        assert (model(**inputs).logits - expected).abs().max() > 1e-3


class Shifted(torch.nn.Module):
    """An embedding with something added to what it returns, and the weight of the one inside."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base, self.weight = base, base.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.base(ids) + torch.linspace(-1.0, 1.0, self.weight.numel()).view_as(self.weight)[ids].sin()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_lora_on_tables_and_projection_acts_in_forward_search_and_scores() -> None:
    peft = pytest.importorskip("peft")
    names = ["embed_positions", "embed_image_positions", "type_embedding", "output_projection"]
    names += ["token_rel_pos_table_list.0", "image_rel_pos_table_list.0"]
    config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    model = peft.get_peft_model(tiny.build_model(), config).eval()
    logits(model).square().sum().backward()
    used = {n for n, p in model.named_parameters() if "lora_" in n and p.grad is not None and p.grad.any()}
    for part in ("encoder.embed_positions", "encoder.embed_image_positions", "encoder.type_embedding", "encoder.token_rel", "encoder.image_rel", "decoder.embed_positions", "decoder.token_rel"):  # fmt: skip  # noqa: E501
        assert any(part in name for name in used), part
    inputs = {"input_ids": PROMPT, **tiny.media("image", 2)}
    first = model(**inputs, decoder_input_ids=torch.zeros(2, 1, dtype=torch.long)).logits[:, 0, [40, 41]]
    torch.testing.assert_close(score_answers(model, inputs, [[40], [41]]), first.log_softmax(-1), atol=1e-5, rtol=1e-5)


class Doubled(torch.nn.Module):
    """A projection with something beside its matrix, as PEFT has."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base, self.weight = base, base.weight

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 2 * self.base(features)


@pytest.mark.parametrize("rows", [None, [5, 2], torch.tensor([0, 3, 3])], ids=["all", "list", "tensor"])
@pytest.mark.parametrize("wrap", [lambda linear: linear, Doubled], ids=["plain", "wrapped"])
def test_some_outputs_are_those_of_the_whole_projection(wrap: Any, rows: Any) -> None:
    projection, features = wrap(Linear(4, 7, bias=False)), torch.randn(2, 3, 4)
    whole = projection(features)
    expected = whole if rows is None else whole[..., rows]
    torch.testing.assert_close(onto_rows(projection, rows)(features), expected, atol=1e-6, rtol=1e-6)


def test_a_constrained_loss_sees_what_is_beside_the_matrix_of_the_projection() -> None:
    examples = [Example(str(index), "", record={}) for index in range(2)]
    target = torch.tensor([[4, 7, 2], [5, 2, 1]])
    model, batch = tiny.build_model().eval(), Batch({"input_ids": PROMPT}, target, examples, ["caption", "caption"])
    plain = CrossEntropy(tiny.processor(), constraint_range=[4, 8])(model, batch).value
    model.decoder.output_projection = Doubled(model.decoder.output_projection)
    doubled = CrossEntropy(tiny.processor(), constraint_range=[4, 8])(model, batch).value
    assert (doubled - plain).abs() > 1e-3


def test_low_rank_updates_are_small_matrices_beside_the_queries_and_values() -> None:
    layer, x = LowRankLinear(6, 4, rank=2, alpha=8.0).double(), torch.randn(3, 6).double()
    assert torch.equal(layer(x), x @ layer.weight.T + layer.bias)  # nothing at first
    torch.nn.init.normal_(layer.lora_B)
    matrix = layer.weight + 4.0 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), x @ matrix.T + layer.bias, atol=1e-12, rtol=1e-12)


def test_low_rank_updates_join_a_model_and_change_every_path_once_trained(tmp_path: Path) -> None:
    model = rebuild(tiny.build_model(), {"lora_rank": 2})
    assert new_names(lora_rank=2) == set(model.state_dict()) - set(tiny.model().state_dict())
    assert len(new_names(lora_rank=2)) == 2 * 2 * (2 + 2 * 2)  # two matrices for q and v of two layers' attentions
    assert torch.equal(logits(model.eval()), logits(tiny.model()))
    freeze(model, stage(train_only=["*.lora_"]))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == new_names(lora_rank=2)
    logits(model).square().sum().backward()
    for name, parameter in trained.items():  # the first factor gets none while the second is zero
        assert parameter.grad is not None, name
        assert parameter.grad.any() == name.endswith("lora_B"), name
    save_model(tmp_path / "model", model, tiny.processor())
    again, _ = load_model(tmp_path / "model")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    # Mapped weights lie elsewhere in memory, which changes the order of float32 sums.
    torch.testing.assert_close(logits(again.eval()), logits(model.eval()), atol=1e-4, rtol=1e-4)
