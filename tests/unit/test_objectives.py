"""What is minimised: cross entropy against specified numbers, self-critical training against its definition."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import tiny
from unival.batch import Batch, Example, Modality
from unival.errors import UserError
from unival.model.modeling import UnivalForConditionalGeneration
from unival.objectives.base import get_objective
from unival.objectives.cross_entropy import Objective as CrossEntropy
from unival.objectives.cross_entropy import encode_media, length_chunks, token_losses, trim
from unival.objectives.self_critical import Objective as SelfCritical
from unival.objectives.self_critical import advantages, sequence_log_probs

PROMPTS = ["what does the image describe?", "what is left of the cat?", "the", "does the image describe a dog?"]
TARGETS = ["a red apple above a cat", "cat", "a dog left of a blue cup a red cat", "yes"]
NAMES = ["caption", "vqa", "caption", "entailment"]


# ------------------------------------------------------------------------------------------------- cross entropy
class LogitTable:
    """Stands for a model: the decoder returns the rows of a table that the encoder was asked for."""

    def __init__(self, logits: Tensor) -> None:
        self.config = SimpleNamespace(vocab_size=logits.shape[-1], pad_token_id=1)
        self.logits = logits
        self.encoder = self
        self.decoder = Decoder(logits)

    def __call__(self, prompt: Tensor, media_index: Tensor, media_tokens: None) -> Tensor:
        return media_index

    def encode_media(self) -> None:
        return None

    def shift_right(self, target: Tensor) -> Tensor:
        return target


class Decoder:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.output_projection = nn.Identity()

    def __call__(self, prefix: Tensor, rows: Tensor) -> Tensor:
        return self.logits[rows][:, : prefix.shape[1]]


# Specification 7.6: two samples, three positions, eight symbols; the last target is padding.
LOGITS = torch.tensor(
    [
        [0.5, -1, 0.2, 0.1, 3, -0.4, 1, 0.3],
        [0.1, 0, 2.5, -1, 0.4, 0.6, -0.2, 0.8],
        [1.2, 0.3, -0.5, 0.7, 0.9, -1.1, 0.2, 0.05],
        [-0.3, 0.9, 0.4, 0.6, -0.8, 6, 0.2, 0.1],
        [0.2, 0.1, 4, 0.3, -0.6, 0.7, 0.5, -0.9],
        [0.0] * 8,
    ]
).reshape(2, 3, 8)
TABLE_TARGET = torch.tensor([[4, 7, 2], [5, 2, 1]])


@pytest.mark.parametrize(("eps", "total"), [(0.0, 5.79650811), (0.1, 7.03007954)])
def test_cross_entropy_has_the_specified_values(eps: float, total: float) -> None:
    model: Any = LogitTable(LOGITS)
    examples = [Example(str(i), "") for i in range(2)]
    batch = Batch({"input_ids": torch.tensor([[0, 2], [0, 2]])}, TABLE_TARGET, examples, ["caption", "vqa"])
    per_token = CrossEntropy(tiny.processor(), label_smoothing=eps)(model, batch)
    assert float(per_token.value) * 5 == pytest.approx(total, rel=1e-7)
    per_example = CrossEntropy(tiny.processor(), label_smoothing=eps, normalise="example")(model, batch)
    assert float(per_example.value) * 2 == pytest.approx(total, rel=1e-7)
    log_probs = LOGITS.log_softmax(-1)
    caption = -(log_probs[0, 0, 4] + log_probs[0, 1, 7] + log_probs[0, 2, 2]) / 3
    vqa = -(log_probs[1, 0, 5] + log_probs[1, 1, 2]) / 2
    assert per_token.logs == {
        "loss/text_caption": pytest.approx(float(caption)),
        "loss/text_vqa": pytest.approx(float(vqa)),
    }


def batch_of(modality: Modality) -> Batch:
    """Return a batch in which rows 0 and 3 share a medium."""
    examples = [Example(str(i), p, t) for i, (p, t) in enumerate(zip(PROMPTS, TARGETS, strict=True))]
    batch = tiny.processor().collate(examples, NAMES)
    if modality != "text":
        batch.inputs |= tiny.media(modality, 3, dtype=torch.float64)
        batch.inputs["media_index"] = torch.tensor([0, 1, 2, 0])
    return batch


def one_rectangle(model: UnivalForConditionalGeneration, batch: Batch, eps: float) -> Tensor:
    """Compute the loss of a batch in one padded forward pass with torch's own label smoothing."""
    labels = batch.target.masked_fill(batch.target == 1, -100)
    logits = model(**batch.inputs, decoder_input_ids=model.shift_right(labels)).logits
    size = logits.shape[-1]  # torch spreads eps over all symbols, the original over all but the gold one
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=eps * size / (size - 1))


@pytest.mark.parametrize("modality", tiny.MODALITIES)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_loss_in_chunks_is_the_loss_of_one_padded_batch(modality: Modality, eps: float) -> None:
    model, batch = tiny.exact_model(), batch_of(modality)
    gradients = []
    objective = CrossEntropy(tiny.processor(), label_smoothing=eps)
    for loss in (objective(model, batch).value, one_rectangle(model, batch, eps)):
        names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True)
        gradients.append((loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)))
    (ours, our_gradients), (expected, expected_gradients) = gradients
    # The objective's softmax is float32 by design.
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6, check_dtype=False)
    for name, one, other in zip(names, our_gradients, expected_gradients, strict=True):
        if other is None:
            assert one is None, name
        else:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_a_token_mean_weighs_long_targets_and_an_example_mean_does_not() -> None:
    model, batch = tiny.exact_model(), batch_of("text")
    rows = [token_losses(model, batch, None, torch.tensor([i]))[0] for i in range(4)]
    by_token = CrossEntropy(tiny.processor())(model, batch).value
    by_example = CrossEntropy(tiny.processor(), normalise="example")(model, batch).value
    torch.testing.assert_close(by_token.float(), torch.cat(rows).mean())
    torch.testing.assert_close(by_example.float(), torch.stack([row.sum() for row in rows]).mean())


def test_logged_losses_are_means_over_the_tokens_of_each_task() -> None:
    model, batch = tiny.exact_model(), batch_of("image")
    media = encode_media(model, batch)
    logs = CrossEntropy(tiny.processor())(model, batch).logs
    assert set(logs) == {"loss/text_caption", "loss/text_entailment", "loss/text_vqa"}
    caption = torch.cat([token_losses(model, batch, media, torch.tensor([i]))[0].detach() for i in (0, 2)])
    assert logs["loss/text_caption"] == pytest.approx(float(caption.mean()), rel=1e-6)


@pytest.mark.parametrize("lengths", [[3, 3, 3], [1, 9, 1, 1, 8], [5], [2, 2, 7]])
def test_chunks_by_length_hold_every_row_once_and_never_cost_more(lengths: list[int]) -> None:
    target = torch.tensor([[5] * n + [1] * (max(lengths) - n) for n in lengths])
    batch = Batch({"input_ids": torch.full((len(lengths), 4), 5)}, target, [])
    chunks = length_chunks(batch, pad_id=1)
    assert sorted(torch.cat(chunks).tolist()) == list(range(len(lengths)))
    assert len(chunks) <= 2
    cost = sum(len(rows) * (4 + max(lengths[i] for i in rows.tolist())) for rows in chunks)
    assert cost <= len(lengths) * (4 + max(lengths))


def test_trimming_cuts_columns_of_padding_only() -> None:
    assert trim(torch.tensor([[5, 6, 1, 1], [7, 1, 1, 1]]), 1).tolist() == [[5, 6], [7, 1]]


# ------------------------------------------------------------------------------------------------- self-critical
@pytest.mark.parametrize("baseline", ["others", "group"])
def test_advantages_of_a_group_sum_to_zero(baseline: str) -> None:
    reward = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_allclose(advantages(reward, baseline).sum(1), 0.0, atol=1e-12)


def test_the_baseline_is_the_mean_of_the_other_samples() -> None:
    reward = np.array([[1.0, 0.0, 0.0, 3.0]])
    expected = [[1 - 1.0, 0 - 4 / 3, 0 - 4 / 3, 3 - 1 / 3]]
    np.testing.assert_allclose(advantages(reward, "others"), expected)


def test_group_advantages_have_unit_scale_and_vanish_for_equal_rewards() -> None:
    reward = np.random.default_rng(0).normal(scale=7.0, size=(5, 4))
    np.testing.assert_allclose(advantages(reward, "group").std(1), 1.0, rtol=1e-3)
    assert not advantages(np.ones((2, 4)), "group").any()


def objective(**changes: Any) -> SelfCritical:
    arguments = {"rewards": {"brevity": 1.0}, "samples": 4, "max_new_tokens": 5} | changes
    return SelfCritical(tiny.processor(), rows=list, **arguments)


def image_batch() -> Batch:
    return tiny.image_batch(PROMPTS[:2], ["a cat", "a dog"])


def test_log_probabilities_of_samples_are_the_models() -> None:
    model, batch = tiny.model(), image_batch()
    sampled = objective().sample(model, batch)
    assert sampled.shape[0] == 8
    rows = torch.arange(2).repeat_interleave(4)
    with torch.no_grad():
        log_prob, keep = sequence_log_probs(model, batch, encode_media(model, batch), rows, sampled)
        index = batch.inputs.get("media_index", torch.arange(2))
        for i, row in enumerate(rows.tolist()):
            tokens = sampled[i][sampled[i] != 1]
            logits = model(
                input_ids=batch.inputs["input_ids"][row : row + 1],
                attention_mask=batch.inputs["attention_mask"][row : row + 1],
                pixel_values=batch.inputs["pixel_values"][index[row]][None],
                decoder_input_ids=torch.cat([torch.zeros(1, dtype=torch.long), tokens[:-1]])[None],
            ).logits[0]
            expected = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            torch.testing.assert_close(log_prob[i][keep[i]], expected, atol=1e-4, rtol=1e-4)
            assert not log_prob[i][~keep[i]].any()


def test_samples_follow_the_models_distribution() -> None:
    """Compare frequencies of the first token with its probability."""
    model, batch = tiny.build_model(vocab_size=40, num_codes=0, num_bins=0), image_batch()
    batch.inputs["input_ids"] = batch.inputs["input_ids"] % 40
    num = 2000
    torch.manual_seed(0)
    first = objective(samples=num, max_new_tokens=1).sample(model, batch)[:, 0].reshape(2, num)
    with torch.no_grad():
        start = torch.zeros(2, 1, dtype=torch.long)
        probability = model(**batch.inputs, decoder_input_ids=start).logits[:, 0].softmax(-1)
    frequency = torch.stack([torch.bincount(row, minlength=40) for row in first]) / num
    assert float((frequency - probability).abs().max()) < 4 * (0.25 / num) ** 0.5  # four standard deviations
    assert len(first.unique()) > 5


def test_sampling_leaves_the_model_as_it_was() -> None:
    model = tiny.build_model()
    model.train()
    model.encoder.embed_images.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objective().sample(model, image_batch())
    assert model.training
    assert model.decoder.layers[0].training
    assert not model.encoder.embed_images.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_loss_is_the_mean_over_tokens_of_advantage_times_log_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, unit = tiny.model(), image_batch(), objective(supervised=0.5)
    sampled = unit.sample(model, batch)
    monkeypatch.setattr(unit, "sample", lambda *_: sampled)
    reward = np.random.default_rng(0).random((2, 4))
    monkeypatch.setattr(unit, "reward", lambda texts, records: reward.flatten())
    loss = unit(model, batch)
    rows = torch.arange(2).repeat_interleave(4)
    media = encode_media(model, batch)
    log_prob, keep = sequence_log_probs(model, batch, media, rows, sampled)
    weight = torch.from_numpy(advantages(reward, "others")).float().reshape(8, 1)
    expected = -(weight * log_prob).sum() / keep.sum()
    expected = expected + 0.5 * token_losses(model, batch, media, torch.arange(2))[0].mean()
    torch.testing.assert_close(loss.value, expected, atol=1e-6, rtol=1e-6)
    assert loss.logs == {"reward": pytest.approx(reward.mean()), "length": pytest.approx(float(keep.sum()) / 8)}


@pytest.mark.parametrize("baseline", ["others", "group"])
def test_twenty_steps_raise_a_toy_reward(baseline: str) -> None:
    """The reward is the share of samples that begin with the letter c."""
    torch.manual_seed(0)
    model = tiny.build_model(1)
    unit = objective(samples=16, max_new_tokens=2, baseline=baseline)
    unit.reward = lambda texts, records: np.array([float(text.startswith("c")) for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch, rewards = image_batch(), []
    for _ in range(20):
        loss = unit(model, batch)
        loss.value.backward()
        optimizer.step()
        optimizer.zero_grad()
        rewards.append(loss.logs["reward"])
    assert np.mean(rewards[:5]) < 0.3
    assert np.mean(rewards[-5:]) > 0.7


# -------------------------------------------------------------------------------------------------------- registry
def test_objectives_are_found_by_file_name_with_checked_arguments() -> None:
    processor = tiny.processor()
    assert isinstance(get_objective("cross_entropy", {"label_smoothing": 0.1}, processor, list), CrossEntropy)
    built = get_objective("self_critical", {"rewards": {"brevity": 1.0}}, processor, list)
    assert isinstance(built, SelfCritical)
    with pytest.raises(UserError, match=r"unknown objective 'cross_entrophy'.*did you mean 'cross_entropy'"):
        get_objective("cross_entrophy", {}, processor, list)
    with pytest.raises(UserError, match=r"no argument 'label_smooth'.*did you mean 'label_smoothing'"):
        get_objective("cross_entropy", {"label_smooth": 0.1}, processor, list)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "mean"}, r"unknown baseline 'mean'.*others, group"),
        ({"samples": 1}, "samples is 1"),
        ({"rewards": {"brevety": 1.0}}, "brevety"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective(**arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("self_critical", {}, "rewards"),
        ("cross_entropy", {"normalise": "tokens"}, r"normalise.*token, example"),
    ],
)
def test_missing_and_wrong_arguments_are_errors_of_the_user(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_objective(name, arguments, tiny.processor(), list)
