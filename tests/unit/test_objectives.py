"""What is minimised: cross entropy against specified numbers, reward objectives against their definitions."""

from collections.abc import Sequence
from pathlib import Path
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
from unival.generate.trie import AnswerTrie
from unival.model.modeling import UnivalForConditionalGeneration
from unival.objectives import _likelihood
from unival.objectives._likelihood import at_targets, encode, encode_media, length_chunks, log_likelihood, trim
from unival.objectives._policy import PolicyObjective
from unival.objectives._sampling import Drawn, is_random, sample
from unival.objectives.base import get_objective
from unival.objectives.cross_entropy import Objective as CrossEntropy
from unival.objectives.cross_entropy import confidences, symmetric_divergence
from unival.objectives.grpo import Objective as Grpo
from unival.objectives.reward_weighted import Objective as RewardWeighted
from unival.objectives.reward_weighted import rescaled
from unival.objectives.self_critical import Objective as SelfCritical
from unival.objectives.self_critical import advantages
from unival.rewards import get_reward

PROMPTS = ["what does the image describe?", "what is left of the cat?", "the", "does the image describe a dog?"]
TARGETS = ["a red apple above a cat", "cat", "a dog left of a blue cup a red cat", "yes"]
NAMES = ["caption", "vqa", "caption", "entailment"]


# ------------------------------------------------------------------------------------------------- cross entropy
class LogitTable:
    """Stands for a model: the decoder returns the rows of a table that the encoder was asked for."""

    def __init__(self, logits: Tensor) -> None:
        self.config = SimpleNamespace(vocab_size=logits.shape[-1], pad_token_id=1, eos_token_id=2)
        self.logits = logits
        self.encoder = self
        self.decoder = Decoder(logits)

    def __call__(self, prompt: Tensor, media_index: Tensor, media_tokens: None) -> Tensor:
        return media_index

    def encode_media(self) -> None:
        return None

    def modules(self) -> list[Any]:
        return []

    def shift_right(self, target: Tensor) -> Tensor:
        return target


class Decoder:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.output_projection = Projection()

    def __call__(self, prefix: Tensor, rows: Tensor, writes_codes: bool) -> Tensor:
        return self.logits[rows][:, : prefix.shape[1]]


class Projection(nn.Module):
    """The identity, with its matrix."""

    weight = torch.eye(8)

    def forward(self, logits: Tensor) -> Tensor:
        return logits


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


def table_batch(**fields: Any) -> Batch:
    examples = [Example(str(i), "", record={"confidence": c}) for i, c in enumerate((1.0, 0.6))]
    return Batch({"input_ids": torch.tensor([[0, 2], [0, 2]])}, TABLE_TARGET, examples, ["caption", "vqa"], **fields)


@pytest.mark.parametrize(("eps", "total"), [(0.0, 5.79650811), (0.1, 7.03007954)])
def test_cross_entropy_has_the_specified_values(eps: float, total: float) -> None:
    model: Any = LogitTable(LOGITS)
    batch = table_batch()
    per_token = CrossEntropy(tiny.processor(), label_smoothing=eps)(model, batch)
    assert float(per_token.value) * 5 == pytest.approx(total, rel=1e-7)
    assert per_token.size == 5
    per_example = CrossEntropy(tiny.processor(), label_smoothing=eps, normalise="example")(model, batch)
    assert float(per_example.value) * 2 == pytest.approx(total, rel=1e-7)
    assert per_example.size == 2
    log_probs = LOGITS.log_softmax(-1)
    caption = -(log_probs[0, 0, 4] + log_probs[0, 1, 7] + log_probs[0, 2, 2]) / 3
    vqa = -(log_probs[1, 0, 5] + log_probs[1, 1, 2]) / 2
    assert per_token.logs == {
        "loss/text_caption": pytest.approx(float(caption)),
        "loss/text_vqa": pytest.approx(float(vqa)),
    }


@pytest.mark.parametrize(
    ("arguments", "total", "size"),
    [
        ({"label_smoothing": 0.1, "confidence": "confidence"}, 6.57240232, 5),
        ({"label_smoothing": 0.1, "drop_worst_ratio": 0.4}, 1.80723688, 3),
        ({"label_smoothing": 0.1, "constraint_range": [4, 8]}, 7.03007928, 5),
        ({"ignore_prefix": 1}, 5.40069716, 3),
        ({"log_end": 1.0}, -1.35222373, 5),
        ({"label_smoothing": 0.1, "log_end": 1.0}, 0.47289950, 5),
        ({"label_smoothing": 0.1, "log_end": 0.75}, 1.99187589, 5),
        ({"label_smoothing": 0.1, "log_end": 0.5}, 3.06322486, 5),
        ({"label_smoothing": 0.1, "log_end": 0.75, "drop_worst_ratio": 0.4}, -3.05487948, 3),
    ],
)
def test_options_of_the_original_have_the_specified_values(arguments: dict[str, Any], total: float, size: int) -> None:
    model: Any = LogitTable(LOGITS)
    loss = CrossEntropy(tiny.processor(), **arguments)(model, table_batch(), 1)
    assert float(loss.value) * size == pytest.approx(total, abs=2e-6)
    assert loss.size == size


def test_drop_worst_waits_for_its_update_and_is_off_in_validation() -> None:
    model: Any = LogitTable(LOGITS)
    objective = CrossEntropy(tiny.processor(), drop_worst_ratio=0.4, drop_worst_after=5)
    assert [objective(model, table_batch(), update).size for update in (0, 5, 6)] == [5, 5, 3]


def test_a_closed_set_leaves_only_the_answers() -> None:
    """Specification 7.6: position (0, 0) allows 4 and 5, (1, 1) allows 2 and 6, the others everything."""
    model: Any = LogitTable(LOGITS)
    objective = CrossEntropy(tiny.processor(), label_smoothing=0.1)
    free = list(range(8))
    objective.tries = {"caption": Steps([[4, 5], free, free]), "vqa": Steps([free, [2, 6]])}  # type: ignore[dict-item]
    assert float(objective(model, table_batch()).value) * 5 == pytest.approx(6.58247361, abs=2e-6)


class Steps:
    """Stands for a trie: what is possible depends on the number of tokens only."""

    def __init__(self, steps: list[list[int]]) -> None:
        self.steps = steps

    def children(self, path: Sequence[int]) -> list[int]:
        return self.steps[len(path)]


def test_rows_of_other_tasks_are_free() -> None:
    model: Any = LogitTable(LOGITS)
    objective = CrossEntropy(tiny.processor())
    objective.tries = {"vqa": AnswerTrie([[5]], 2)}
    loss = objective(model, table_batch())
    assert loss.logs["loss/text_vqa"] == 0.0  # one answer is certain
    assert loss.logs["loss/text_caption"] > 0.5


def test_symmetric_divergence_has_the_specified_value() -> None:
    log_probs = LOGITS.log_softmax(-1)
    assert float(symmetric_divergence(log_probs[0], log_probs[1]).sum()) == pytest.approx(4.92855139, rel=1e-6)


def test_rdrop_passes_twice_and_adds_the_divergence_of_both_predictions() -> None:
    """In a model without dropout both passes agree; with dropout they differ, and only the divergence is added."""
    model, batch = tiny.build_model(dropout=0.1), batch_of("text")
    plain = CrossEntropy(tiny.processor())(model, batch)
    twice = CrossEntropy(tiny.processor(), rdrop=3.0)(model, batch)
    torch.testing.assert_close(twice.value, plain.value)
    assert twice.size == 2 * plain.size
    assert twice.logs == pytest.approx(plain.logs)
    model.train()
    losses = []
    for weight in (1e-9, 1.0, 2.0):
        torch.manual_seed(3)
        losses.append(CrossEntropy(tiny.processor(), rdrop=weight)(model, batch).value.item())
    assert losses[1] > losses[0]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1, "log_end": 0.75}, {"rdrop": 1.0}, {"label_smoothing": 0.1}]
)
def test_slices_of_the_vocabulary_product_change_nothing(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    model, batch = tiny.build_model(), batch_of("text")
    parameters = [model.encoder.embed_tokens.weight, model.decoder.layers[0].fc1.weight]
    results = []
    for num_bytes in (2**27, 4 * 3 * model.config.vocab_size):  # 3 tokens a slice
        monkeypatch.setattr(_likelihood, "LOGITS_BYTES", num_bytes)
        loss = CrossEntropy(tiny.processor(), **options)(model, batch).value
        results.append([loss.detach(), *torch.autograd.grad(loss, parameters)])
    for whole, sliced in zip(*results, strict=True):
        torch.testing.assert_close(sliced, whole, atol=1e-6, rtol=1e-4)


def test_a_prompt_before_the_answer_is_read_but_carries_no_loss() -> None:
    model, batch = tiny.model(), batch_of("text")
    question = batch.inputs["input_ids"][:, :3]
    shifted = model.shift_right(batch.target)
    batch.prefix = torch.cat([question, shifted[:, 1:]], dim=1)  # `<s>` is the question's
    nothing = torch.ones_like(question[:, :2])
    batch.target = torch.cat([nothing, batch.target], dim=1)
    with torch.no_grad():
        loss = CrossEntropy(tiny.processor())(model, batch)
        logits = model(**batch.inputs, decoder_input_ids=batch.prefix).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch.target.masked_fill(batch.target == 1, -100).flatten())
    torch.testing.assert_close(loss.value, expected, atol=1e-5, rtol=1e-5)


def test_answers_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    model, batch = tiny.model(), batch_of("text")
    answers = ["cat", "a cat", "dog", "red dog"]
    (tmp_path / "answers.txt").write_text("\n".join(answers) + "\n", encoding="utf-8")
    losses = [
        CrossEntropy(tiny.processor(), answers={"vqa": given})(model, batch).logs["loss/text_vqa"]
        for given in (answers, str(tmp_path / "answers.txt"))
    ]
    assert losses[0] == losses[1] < CrossEntropy(tiny.processor())(model, batch).logs["loss/text_vqa"]
    with pytest.raises(UserError, match="target 'cat' is not among the answers of task 'vqa'"):
        CrossEntropy(tiny.processor(), answers={"vqa": ["dog"]})(model, batch)


def test_targets_outside_the_constraint_range_and_wrong_confidences_are_refused() -> None:
    model: Any = LogitTable(LOGITS)
    with pytest.raises(UserError, match="target token 4 is outside constraint_range"):
        CrossEntropy(tiny.processor(), constraint_range=[5, 8])(model, table_batch())
    with pytest.raises(UserError, match="constraint_range is 5, 9"):
        CrossEntropy(tiny.processor(), constraint_range=[5, 9])(model, table_batch())
    batch = table_batch()
    batch.examples[1].record["answers"] = ["cat"]  # type: ignore[index]
    with pytest.raises(UserError, match="'conf' is None, not a positive number"):
        CrossEntropy(tiny.processor(), confidence="conf")(model, batch)


def test_a_list_of_confidences_counts_by_its_largest_and_a_row_without_answers_fully() -> None:
    batch = table_batch()
    batch.examples[0].record.clear()  # type: ignore[attr-defined]
    batch.examples[1].record.update(answers=["cat", "dog"], confidence=[0.6, 0.3])  # type: ignore[attr-defined]
    assert confidences(batch, "confidence").tolist() == pytest.approx([1.0, 0.6])


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


def row_losses(model: UnivalForConditionalGeneration, batch: Batch, row: int) -> Tensor:
    """Compute -log p of the target tokens of one row alone."""
    with torch.no_grad():
        rows = torch.tensor([row])
        encoded = encode(model, batch, encode_media(model, batch), rows)
        target = batch.target[rows]
        found = at_targets(model.decoder(model.shift_right(target), encoded), target, 1)
        return -log_likelihood(model, found)


def test_a_token_mean_weighs_long_targets_and_an_example_mean_does_not() -> None:
    model, batch = tiny.exact_model(), batch_of("text")
    rows = [row_losses(model, batch, i) for i in range(4)]
    by_token = CrossEntropy(tiny.processor())(model, batch).value
    by_example = CrossEntropy(tiny.processor(), normalise="example")(model, batch).value
    torch.testing.assert_close(by_token.float(), torch.cat(rows).mean())
    torch.testing.assert_close(by_example.float(), torch.stack([row.sum() for row in rows]).mean())


def test_logged_losses_are_means_over_the_tokens_of_each_task() -> None:
    model, batch = tiny.exact_model(), batch_of("image")
    logs = CrossEntropy(tiny.processor())(model, batch).logs
    assert set(logs) == {"loss/text_caption", "loss/text_entailment", "loss/text_vqa"}
    caption = torch.cat([row_losses(model, batch, i) for i in (0, 2)])
    assert logs["loss/text_caption"] == pytest.approx(float(caption.mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("lengths", "number"), [([3, 3, 3], 1), ([1, 9, 1, 1, 8], 1), ([5], 1), ([1, 90, 1, 1, 80], 2), ([2] * 40 + [9], 2)]
)
def test_chunks_by_length_hold_every_row_once_and_never_cost_more(lengths: list[int], number: int) -> None:
    target = torch.tensor([[5] * n + [1] * (max(lengths) - n) for n in lengths])
    batch = Batch({"input_ids": torch.full((len(lengths), 4), 5)}, target, [])
    chunks = length_chunks(batch, pad_id=1)
    assert sorted(torch.cat(chunks).tolist()) == list(range(len(lengths)))
    assert len(chunks) == number
    cost = sum(len(rows) * (4 + max(lengths[i] for i in rows.tolist())) for rows in chunks)
    assert cost <= len(lengths) * (4 + max(lengths))


@pytest.mark.parametrize("is_sharded", [False, True])
def test_sharded_layers_run_once_whatever_the_lengths(monkeypatch: pytest.MonkeyPatch, is_sharded: bool) -> None:
    """Every process gathers a layer for each time that it runs; another's lengths may give it fewer chunks."""
    model, batch = tiny.exact_model(), batch_of("text")
    expected = CrossEntropy(tiny.processor())(model, batch).value
    calls: list[int] = []
    model.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(_likelihood, "CHUNK_TOKENS", -1000)  # always two chunks
    if is_sharded:
        monkeypatch.setattr("unival.objectives.cross_entropy.FSDPModule", type(model.decoder))
    found = CrossEntropy(tiny.processor())(model, batch).value
    assert len(calls) == (1 if is_sharded else 2)
    torch.testing.assert_close(found, expected)


def test_trimming_cuts_columns_of_padding_only() -> None:
    assert trim(torch.tensor([[5, 6, 1, 1], [7, 1, 1, 1]]), 1).tolist() == [[5, 6], [7, 1]]


# ------------------------------------------------------------------------------------------------ reward objectives
class Scores:
    """Stands for a scorer: the rewards are a function of the texts."""

    def __init__(self, score: Any) -> None:
        self.score, self.reward = score, self

    def submit(self, texts: Sequence[str], records: Sequence[Any]) -> Any:
        values = np.asarray(self.score(texts), dtype=np.float64)
        return lambda: {"brevity": values}

    def total(self, terms: dict[str, np.ndarray]) -> np.ndarray:
        return terms["brevity"]


def objective(cls: type[PolicyObjective] = SelfCritical, **changes: Any) -> Any:
    arguments = {"rewards": {"brevity": 1.0}, "samples": 4, "max_new_tokens": 5} | changes
    return cls(processor=tiny.processor(), rows=list, **arguments)


def image_batch() -> Batch:
    return tiny.image_batch(PROMPTS[:2], ["a cat", "a dog"])


def fixed(monkeypatch: pytest.MonkeyPatch, unit: PolicyObjective, model: Any, batch: Batch, rewards: Any) -> Drawn:
    """Make an objective draw the same sequences again and give them the same rewards."""
    drawn = unit.draw(model, batch)
    monkeypatch.setattr(unit, "draw", lambda *_: drawn)
    unit.scorer = Scores(lambda texts: rewards)  # type: ignore[assignment]
    return drawn


def model_log_probs(
    model: UnivalForConditionalGeneration, batch: Batch, row: int, tokens: Tensor, temperature: float = 1.0
) -> Tensor:
    """Compute log-probabilities (T, V) before each token of one sequence, from the whole model without a cache."""
    index = batch.inputs.get("media_index", torch.arange(len(batch.examples)))
    logits = model(
        input_ids=batch.inputs["input_ids"][row : row + 1],
        attention_mask=batch.inputs["attention_mask"][row : row + 1],
        pixel_values=batch.inputs["pixel_values"][index[row]][None],
        decoder_input_ids=torch.cat([torch.zeros(1, dtype=torch.long), tokens[:-1]])[None],
    ).logits[0]
    return (logits / temperature).log_softmax(-1)


def sequences(drawn: Drawn) -> list[tuple[int, int, Tensor]]:
    """List (row, sample, tokens without padding)."""
    rows, group, _ = drawn.tokens.shape
    return [(i, k, drawn.tokens[i, k][drawn.tokens[i, k] != 1]) for i in range(rows) for k in range(group)]


@pytest.mark.parametrize("baseline", ["others", "group"])
def test_advantages_of_a_group_sum_to_zero(baseline: str) -> None:
    reward = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_allclose(advantages(reward, baseline).sum(1), 0.0, atol=1e-12)


def test_baselines_are_the_other_samples_the_greedy_sequence_or_nothing() -> None:
    reward = np.array([[1.0, 0.0, 0.0, 3.0]])
    expected = [[1 - 1.0, 0 - 4 / 3, 0 - 4 / 3, 3 - 1 / 3]]
    np.testing.assert_allclose(advantages(reward, "others"), expected)
    np.testing.assert_allclose(advantages(reward, "greedy"), [[-2.0, -3.0, -3.0]])
    np.testing.assert_allclose(advantages(reward, "none"), reward)


def test_group_advantages_have_unit_scale_and_vanish_for_equal_rewards() -> None:
    reward = np.random.default_rng(0).normal(scale=7.0, size=(5, 4))
    np.testing.assert_allclose(advantages(reward, "group").std(1), 1.0, rtol=1e-3)
    assert not advantages(np.ones((2, 4)), "group").any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_of_samples_are_the_models_at_the_temperature(temperature: float) -> None:
    model, batch = tiny.model(), image_batch()
    torch.manual_seed(0)
    drawn = objective(temperature=temperature).draw(model, batch)
    assert drawn.tokens.shape[:2] == (2, 4)
    with torch.no_grad():
        encoded = encode(model, batch, encode_media(model, batch), torch.arange(2))
        flat = drawn.tokens.flatten(0, 1)
        found = at_targets(model.decoder(model.shift_right(flat), encoded), flat, 1)
        trained = log_likelihood(model, found, temperature)  # four samples read one row of the encoder
        for row, sample, tokens in sequences(drawn):
            expected = model_log_probs(model, batch, row, tokens, temperature).gather(-1, tokens[:, None])[:, 0]
            own = drawn.log_probs[row, sample]
            torch.testing.assert_close(own[: len(tokens)], expected, atol=1e-4, rtol=1e-4)
            assert not own[len(tokens) :].any()
            torch.testing.assert_close(trained[found.row == 4 * row + sample], expected, atol=1e-4, rtol=1e-4)


def test_samples_follow_the_models_distribution_at_the_temperature() -> None:
    """Compare frequencies of the first token with its probability; padding and `<s>` are never drawn."""
    model, batch = tiny.build_model(vocab_size=40, num_codes=0, num_bins=0), image_batch()
    ids = batch.inputs["input_ids"]
    batch.inputs["input_ids"] = ids.where(ids < 4, ids % 36 + 4)  # inside the vocabulary, and padding stays padding
    num, temperature = 2000, 2.0
    torch.manual_seed(0)
    drawn = objective(samples=num, max_new_tokens=1, temperature=temperature).draw(model, batch)
    with torch.no_grad():
        start = torch.zeros(2, 1, dtype=torch.long)
        logits = model(**batch.inputs, decoder_input_ids=start).logits[:, 0] / temperature
    logits[:, :2] = -torch.inf
    frequency = torch.stack([torch.bincount(row, minlength=40) for row in drawn.tokens[:, :, 0]]) / num
    assert float((frequency - logits.softmax(-1)).abs().max()) < 4 * (0.25 / num) ** 0.5  # four standard deviations
    assert len(drawn.tokens.unique()) > 5


def test_the_greedy_sequence_takes_the_most_probable_tokens() -> None:
    model, batch = tiny.model(), image_batch()
    drawn = objective(samples=1, baseline="greedy").draw(model, batch)
    assert drawn.tokens.shape[:2] == (2, 2)
    with torch.no_grad():
        for row, sample, tokens in sequences(drawn):
            if sample == 1:
                log_probs = model_log_probs(model, batch, row, tokens)
                log_probs[:, :2] = -torch.inf
                assert torch.equal(log_probs.argmax(-1), tokens)


def test_samples_keep_to_their_limits() -> None:
    torch.manual_seed(0)
    unit = objective(samples=64, min_new_tokens=3, max_new_tokens=4, temperature=3.0)
    tokens = unit.draw(tiny.model(), image_batch()).tokens
    assert tokens.shape[2] == 4
    assert not (tokens[:, :, :3] <= 2).any()


def test_tokens_are_picked_in_proportion_to_their_weights() -> None:
    torch.manual_seed(0)
    weights = torch.zeros(4000, 300)  # several blocks, the last one not full
    weights[:, 1], weights[:, 299] = 1.0, 3.0
    counts = torch.bincount(sample(weights)[:, 0], minlength=300)
    assert counts.sum() == 4000
    assert int(counts[1] + counts[299]) == 4000
    assert int(counts[1]) == pytest.approx(1000, abs=4 * (4000 * 0.25 * 0.75) ** 0.5)  # four standard deviations


@pytest.mark.parametrize(
    ("dropout", "norm", "num_media", "num_encoded"),
    [(0.0, "audio", 1, 1), (0.1, "audio", 1, 2), (0.0, "image", 2, 2)],
    ids=["other encoders do not matter", "dropout", "batch statistics"],
)
def test_what_training_does_not_change_is_computed_once(
    monkeypatch: pytest.MonkeyPatch, dropout: float, norm: str, num_media: int, num_encoded: int
) -> None:
    model, batch = tiny.build_model(dropout=dropout), image_batch()
    model.train()
    for name in ("image", "video", "audio"):
        getattr(model.encoder, f"embed_{name}s").train(name == norm)
    calls: list[str] = []

    def counted(name: str) -> None:
        real = getattr(type(model.encoder), name)
        monkeypatch.setattr(model.encoder, name, lambda *a, **k: (calls.append(name), real(model.encoder, *a, **k))[1])

    counted("encode_media")
    counted("forward")
    unit = objective()
    unit.scorer = Scores(lambda texts: range(len(texts)))
    loss = unit(model, batch)
    assert (calls.count("encode_media"), calls.count("forward")) == (num_media, num_encoded)
    loss.value.backward()
    assert float(model.encoder.image_proj.weight.grad.abs().sum()) > 0.0


def test_a_batch_statistic_or_dropout_makes_a_module_random_unless_it_is_unused() -> None:
    model = tiny.build_model()
    assert not is_random(model.encoder)
    model.encoder.embed_images.train()
    assert is_random(model.encoder)
    assert not is_random(model.encoder, [model.encoder.embed_images])


def test_a_constraint_range_is_all_that_is_drawn_and_all_that_probabilities_are_over() -> None:
    model, batch = tiny.model(), image_batch()
    first, end = 20, 30
    torch.manual_seed(0)
    unit = objective(samples=16, max_new_tokens=4, temperature=2.0, constraint_range=[first, end])
    drawn = unit.draw(model, batch)
    allowed = [2, *range(first, end)]
    assert set(drawn.tokens.unique().tolist()) <= {1, *allowed}
    assert len(drawn.tokens.unique()) > 5
    columns = torch.tensor([0, 1, 2, 3, *range(first, end)])
    with torch.no_grad():
        for row, sample, tokens in sequences(drawn)[::8]:
            logits = model_log_probs(model, batch, row, tokens, 2.0)[:, columns]  # up to a constant
            expected = logits.log_softmax(-1).gather(-1, torch.searchsorted(columns, tokens)[:, None])[:, 0]
            own = drawn.log_probs[row, sample, : len(tokens)]
            torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)
    unit.scorer = Scores(lambda texts: np.arange(float(len(texts))))
    unit.draw = lambda *_: drawn
    clipped = Grpo(
        processor=tiny.processor(),
        rows=list,
        rewards={"brevity": 1.0},
        samples=16,
        temperature=2.0,
        constraint_range=[first, end],
    )
    clipped.scorer, clipped.draw = unit.scorer, unit.draw
    # The ratio of the two passes is one, so that the surrogate is minus the mean advantage, which is zero.
    assert float(clipped(model, batch).value.detach()) == pytest.approx(0.0, abs=1e-4)
    with pytest.raises(UserError, match="constraint_range is 2, 9"):
        objective(constraint_range=[2, 9]).draw(model, batch)


def test_sampling_leaves_the_model_as_it_was() -> None:
    model = tiny.build_model()
    model.train()
    model.encoder.embed_images.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objective().draw(model, image_batch())
    assert model.training
    assert model.decoder.layers[0].training
    assert not model.encoder.embed_images.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("normalise", ["token", "sequence"])
@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_the_loss_is_the_mean_of_advantage_times_log_probability(
    monkeypatch: pytest.MonkeyPatch, normalise: str, baseline: str
) -> None:
    model, batch = tiny.model(), image_batch()
    unit = objective(supervised=0.5, temperature=0.7, normalise=normalise, baseline=baseline)
    rewards = np.random.default_rng(0).random((2, 5 if baseline == "greedy" else 4))
    drawn = fixed(monkeypatch, unit, model, batch, rewards.flatten())
    loss = unit(model, batch)
    weights = advantages(rewards, baseline)
    terms = []
    with torch.no_grad():
        for row, sample, tokens in sequences(drawn):
            if sample < 4:
                log_probs = model_log_probs(model, batch, row, tokens, 0.7).gather(-1, tokens[:, None])[:, 0]
                terms.append(-float(weights[row, sample]) * log_probs)
        expected = torch.cat(terms).mean() if normalise == "token" else torch.stack([t.mean() for t in terms]).mean()
        expected = expected + 0.5 * torch.cat([row_losses(model, batch, row) for row in range(2)]).mean()
    torch.testing.assert_close(loss.value.detach(), expected, atol=1e-5, rtol=1e-5)
    num = sum(len(term) for term in terms)
    assert loss.size == (num if normalise == "token" else 8)
    assert loss.logs == {"reward": pytest.approx(rewards[:, :4].mean()), "length": pytest.approx(num / 8)}


def test_the_originals_supervision_expects_the_reference_after_the_sampled_prefix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Specification 7.3, with two tokens: no `</s>`, the sum over samples divided by the number of sampled tokens."""
    model, batch = tiny.model(), image_batch()
    limits = {"samples": 1, "min_new_tokens": 2, "max_new_tokens": 2}
    unit = objective(baseline="none", supervised=1.0, supervised_prefix="sampled", **limits)
    drawn = fixed(monkeypatch, unit, model, batch, np.zeros(2))
    total = torch.zeros(())
    with torch.no_grad():
        for row, _, tokens in sequences(drawn):
            reference = batch.target[row, :2]
            assert 2 not in reference
            total -= model_log_probs(model, batch, row, tokens).gather(-1, reference[:, None]).sum()
    torch.testing.assert_close(unit(model, batch).value.detach(), total / 4, atol=1e-5, rtol=1e-5)


def test_the_divergence_from_the_start_is_its_unbiased_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other, batch = tiny.model(), tiny.build_model(1), image_batch()
    unit = objective(kl=0.5, start="given below")
    unit._start_model = other
    drawn = fixed(monkeypatch, unit, model, batch, np.zeros(8))
    loss, terms = unit(model, batch), []
    with torch.no_grad():
        for row, _, tokens in sequences(drawn):
            pair = [model_log_probs(m, batch, row, tokens).gather(-1, tokens[:, None])[:, 0] for m in (other, model)]
            terms.append((pair[0] - pair[1]).exp() - 1 - (pair[0] - pair[1]))
    expected = torch.cat(terms).mean()
    torch.testing.assert_close(loss.value.detach(), 0.5 * expected, atol=1e-4, rtol=1e-3)
    assert loss.logs["kl"] == pytest.approx(float(expected), rel=1e-3)
    unit._start_model = model
    assert unit(model, batch).logs["kl"] == pytest.approx(0.0, abs=1e-6)


def test_without_dropout_grpo_has_the_gradient_of_self_critical_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, gradients = tiny.build_model(), image_batch(), []
    rewards = np.random.default_rng(0).random(8)
    drawn = objective().draw(model, batch)
    for unit in (objective(Grpo), objective(baseline="group", normalise="sequence")):
        monkeypatch.setattr(unit, "draw", lambda *_: drawn)
        unit.scorer = Scores(lambda texts: rewards)
        gradients.append(torch.autograd.grad(unit(model, batch).value, [model.decoder.layers[0].fc1.weight])[0])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)


def test_the_clip_stops_tokens_that_have_moved_far_enough() -> None:
    old, weights = torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0])
    log_probs = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    loss = objective(Grpo, clip=0.2).token_loss(log_probs, old, weights)
    torch.testing.assert_close(loss.detach(), torch.tensor([-1.2, -0.5, 1.5, 0.8]))
    loss.sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([0.0, -0.5, 1.5, 0.0]))


def test_reward_weights_keep_the_better_half_with_minimum_zero_and_mean_one() -> None:
    weights = rescaled(np.array([[3.0, 1.0, 0.0], [2.0, -5.0, 5.0]]), keep=0.5)
    np.testing.assert_allclose(weights, [[0.75, 0, 0], [0, 0, 2.25]])
    assert not rescaled(np.full((2, 2), 0.3), keep=0.5).any()
    np.testing.assert_allclose(rescaled(np.array([[0.0, 1.0]]), keep=1.0), [[0, 2]])


def test_several_rewards_are_summed_and_logged_one_by_one() -> None:
    model, batch = tiny.model(), image_batch()
    unit = objective(rewards={"brevity": 2.0, "length": -0.5}, reward_args={"length": {"words": 3}})
    logs = unit(model, batch).logs
    assert set(logs) == {"reward", "reward/brevity", "reward/length", "length"}
    assert logs["reward"] == pytest.approx(2 * logs["reward/brevity"] - 0.5 * logs["reward/length"])


def test_worker_processes_give_the_rewards_of_the_line() -> None:
    records = [{"uid": str(i), "captions": ["a red apple above a cat"], "image": object()} for i in range(3)]
    texts = ["a red apple", "a cat", "a red apple above a cat"]
    unit = objective(rewards={"rouge_l": 1.0, "brevity": 1.0}, reward_workers=2)
    terms = unit.scorer.submit(texts, records)()
    assert set(terms) == {"rouge_l", "brevity"}
    for name, scores in terms.items():
        assert scores.tolist() == get_reward(name)(texts, records).tolist()


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (SelfCritical, {"baseline": "others"}),
        (SelfCritical, {"baseline": "greedy"}),
        (Grpo, {}),
        (RewardWeighted, {}),
    ],
)
def test_thirty_steps_raise_a_toy_reward(cls: type[PolicyObjective], options: dict[str, Any]) -> None:
    """The reward is the share of samples that begin with the letter c."""
    torch.manual_seed(0)
    model = tiny.build_model(1)
    unit = objective(cls, samples=16, max_new_tokens=2, **options)
    unit.scorer = Scores(lambda texts: [float(text.startswith("c")) for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch, rewards = image_batch(), []
    for step in range(30):
        loss = unit(model, batch, step)
        loss.value.backward()
        optimizer.step()
        optimizer.zero_grad()
        rewards.append(loss.logs["reward"])
    assert rewards[0] < 0.2
    assert np.mean(rewards[-5:]) > 0.6


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
    assert isinstance(get_objective("grpo", {"rewards": {"brevity": 1.0}, "clip": 0.3}, processor, list), Grpo)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "mean"}, r"unknown baseline 'mean'.*others, greedy, group, none"),
        ({"samples": 1}, "samples is 1"),
        ({"samples": 0, "baseline": "greedy"}, "samples is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"kl": 0.1}, "kl needs the start model"),
        ({"normalise": "example"}, r"unknown normalise 'example'.*token, sequence"),
        ({"supervised_prefix": "own"}, r"unknown supervised_prefix 'own'.*reference, sampled"),
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
        ("cross_entropy", {"label_smoothing": 1.5}, "label_smoothing is 1.5"),
        ("cross_entropy", {"drop_worst_ratio": 1.0}, "drop_worst_ratio is 1.0"),
        ("cross_entropy", {"log_end": 0.0}, "log_end is 0.0"),
        ("cross_entropy", {"answers": {"vqa": ["a"]}, "constraint_range": [4, 8]}, "both given"),
        ("cross_entropy", {"answers": {"vqa": "no-such-file.txt"}}, "no such file of answers"),
        ("grpo", {"rewards": {"brevity": 1.0}, "clip": 1.2}, "clip is 1.2"),
        ("reward_weighted", {"rewards": {"brevity": 1.0}, "keep": 0.0}, "keep is 0.0"),
    ],
)
def test_missing_and_wrong_arguments_are_errors_of_the_user(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_objective(name, arguments, tiny.processor(), list)
