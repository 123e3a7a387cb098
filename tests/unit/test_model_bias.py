"""Attention biases: computed buckets are the stored tables' entries, and both orders of a product are the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests import tiny
from unival.model import positions
from unival.model.bias import PositionBias, relative_bias
from unival.model.modeling import UnivalForConditionalGeneration


def decoder() -> PositionBias:
    return tiny.exact_model().decoder


@given(length=st.integers(1, 64), start=st.integers(0, 63))
def test_text_buckets_of_the_last_rows_are_those_of_the_whole_table(length: int, start: int) -> None:
    start = min(start, length - 1)
    table = positions.text_buckets(tiny.SIZES["text_bucket_size"], tiny.SIZES["max_text_positions"])
    assert torch.equal(decoder().text_buckets(start, length), table[start:length, :length])


@given(ids=st.lists(st.integers(0, 36), min_size=1, max_size=8), start=st.integers(0, 7))
def test_image_buckets_are_those_of_the_whole_table(ids: list[int], start: int) -> None:
    keys = torch.tensor(ids)
    table = positions.image_buckets(tiny.SIZES["image_bucket_size"])
    assert torch.equal(decoder().image_buckets(keys[start:], keys), table[keys[start:]][:, keys])


def test_buckets_are_there_after_loading_without_memory(tmp_path) -> None:
    tiny.model().save_pretrained(tmp_path)
    loaded = UnivalForConditionalGeneration.from_pretrained(tmp_path)
    for side in ("encoder", "decoder"):
        ours = tiny.model().get_submodule(side).text_buckets(0, 64)
        assert torch.equal(loaded.get_submodule(side).text_buckets(0, 64), ours)
    assert not any("bucket" in name for name in loaded.state_dict())


@pytest.mark.parametrize("num_queries", [1, 3, 20])  # a head is 8 wide: both orders of the product
@pytest.mark.parametrize("rows", [1, 2])
def test_absolute_bias_is_the_product_of_projected_positions(num_queries: int, rows: int) -> None:
    part, width = decoder(), tiny.SIZES["d_model"]
    query, key = torch.randn(1, num_queries, width).double(), torch.randn(rows, 5, width).double()
    q_linear, k_linear = part.cross_pos_q_linear, part.cross_pos_k_linear
    q = q_linear(query).unflatten(-1, (2, 8)).transpose(1, 2) * (8 * 2.0) ** -0.5
    k = k_linear(key).unflatten(-1, (2, 8)).transpose(1, 2)
    ours = part.absolute_bias(query, key, q_linear, k_linear)
    torch.testing.assert_close(ours, q @ k.mT, atol=1e-12, rtol=1e-12)


def test_an_adapted_projection_is_called_not_read() -> None:
    class Adapted(nn.Linear):
        """Stands for LoRA: computes more than its weight says."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * 2.0

    part, width = decoder(), tiny.SIZES["d_model"]
    adapted = Adapted(width, width).double()
    adapted.load_state_dict(part.cross_pos_k_linear.state_dict())
    query, key = torch.randn(1, 1, width).double(), torch.randn(1, 5, width).double()
    before = part.absolute_bias(query, key, part.cross_pos_q_linear, part.cross_pos_k_linear)
    after = part.absolute_bias(query, key, part.cross_pos_q_linear, adapted)
    torch.testing.assert_close(after, 2.0 * before, atol=1e-12, rtol=1e-12)


def test_media_and_text_share_one_lookup_and_mixed_pairs_get_nothing() -> None:
    encoder = tiny.exact_model().encoder
    ids = torch.tensor([1, 2, 7])
    found = relative_bias(encoder.table(1, ids), encoder.buckets(ids, 4))  # H S S
    image = encoder.image_table(1)[positions.image_buckets(6)[ids][:, ids]].permute(2, 0, 1)
    text = encoder.text_table(1)[positions.text_buckets(8, 64)[:4, :4]].permute(2, 0, 1)
    assert torch.equal(found[:, :3, :3], image)
    assert torch.equal(found[:, 3:, 3:], text)
    assert not found[:, :3, 3:].any()
    assert not found[:, 3:, :3].any()
    assert torch.equal(relative_bias(encoder.table(1, None), encoder.buckets(None, 4)), text)
    rows = torch.stack([ids, ids.flip(0)])  # a row each, as when patches are sampled
    batched = relative_bias(encoder.table(1, rows), encoder.buckets(rows, 4))
    assert torch.equal(batched[0], found)
    assert torch.equal(batched[1, :, 3:, 3:], text)
    assert torch.equal(batched[1, :, :3, :3], image.flip(1, 2))
