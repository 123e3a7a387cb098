"""Laws that hold for every input of the metrics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unival.metrics.bleu import bleu
from unival.metrics.bootstrap import bootstrap_difference, bootstrap_mean
from unival.metrics.caption_match import exact_match, mentioned_names, name_precision, name_recall
from unival.metrics.cider import CiderD, cider_d
from unival.metrics.iou import box_accuracy, box_area, box_iou, size_mask
from unival.metrics.rouge import rouge_l
from unival.metrics.vqa_accuracy import normalize_answer, soft_scores, vqa_accuracy

WORDS = ["a", "the", "cat", "dog", "red", "on", "mat", "face"]
captions = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
samples = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=3)), min_size=1, max_size=6)
coordinates = st.integers(-50, 400).map(lambda quarter: quarter / 4)
any_boxes = st.lists(st.tuples(*[coordinates] * 4), min_size=1, max_size=5)
extents = st.integers(1, 400).map(lambda quarter: quarter / 4)
boxes = st.tuples(coordinates, coordinates, extents, extents).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
scores = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20)
METRICS = {
    "cider_d": cider_d,
    "bleu1": lambda texts, references: bleu(texts, references)["bleu1"],
    "bleu4": lambda texts, references: bleu(texts, references)["bleu4"],
    "rouge_l": rouge_l,
    "exact_match": exact_match,
    "vqa_accuracy": vqa_accuracy,
}
MAXIMUM = {"cider_d": 10.0}
# Float64 sums of a few dozen terms in another order.
TOLERANCE = 1e-12


@pytest.mark.parametrize("name", METRICS)
@given(pairs=samples, data=st.data())
def test_permuting_samples_permutes_scores(name: str, pairs: list[tuple[str, list[str]]], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(pairs))))
    score = METRICS[name]([text for text, _ in pairs], [references for _, references in pairs])
    permuted = METRICS[name]([pairs[i][0] for i in order], [pairs[i][1] for i in order])
    np.testing.assert_allclose(permuted.per_sample, score.per_sample[order], rtol=0, atol=TOLERANCE)
    assert permuted.value == pytest.approx(score.value, abs=TOLERANCE)


@pytest.mark.parametrize("name", METRICS)
@given(pairs=samples)
def test_scores_lie_between_zero_and_the_maximum(name: str, pairs: list[tuple[str, list[str]]]) -> None:
    score = METRICS[name]([text for text, _ in pairs], [references for _, references in pairs])
    assert score.per_sample.shape == (len(pairs),)
    assert (score.per_sample >= 0).all()
    assert (score.per_sample <= MAXIMUM.get(name, 1.0) + TOLERANCE).all()


@pytest.mark.parametrize("name", METRICS)
@given(pairs=samples, data=st.data())
def test_order_of_references_is_irrelevant(name: str, pairs: list[tuple[str, list[str]]], data: st.DataObject) -> None:
    texts = [text for text, _ in pairs]
    shuffled = [data.draw(st.permutations(references)) for _, references in pairs]
    expected = METRICS[name](texts, [references for _, references in pairs]).per_sample
    np.testing.assert_allclose(METRICS[name](texts, shuffled).per_sample, expected, rtol=0, atol=TOLERANCE)


@given(caption=captions, others=st.lists(captions, max_size=3))
def test_a_prediction_equal_to_a_reference_scores_the_maximum(caption: str, others: list[str]) -> None:
    references = [[*others, caption]]
    assert rouge_l([caption], references).value == pytest.approx(1, abs=TOLERANCE)
    assert exact_match([caption], references).value == 1
    num_words = len(caption.split())
    for n, score in enumerate(bleu([caption], references).values(), start=1):
        # The definition adds 1e-9 to denominators, and shorter captions have a precision of 1e-6.
        assert num_words < n or score.value == pytest.approx(1, abs=1e-8)


@given(references=st.lists(captions, min_size=2, max_size=6))
def test_cider_d_of_the_only_reference_is_ten_if_each_length_has_a_rare_ngram(references: list[str]) -> None:
    unique = [f"x{place} y{place} z{place} {text} w{place}" for place, text in enumerate(references)]
    scores = cider_d(unique, [[text] for text in unique]).per_sample
    np.testing.assert_allclose(scores, 10.0, rtol=0, atol=1e-11)


@given(pairs=samples, extra=captions)
def test_more_references_never_lower_bleu1_precision_or_rouge(pairs: list[tuple[str, list[str]]], extra: str) -> None:
    texts, references = [text for text, _ in pairs], [own for _, own in pairs]
    more = [[*own, extra] for own in references]
    assert (rouge_l(texts, more).per_sample >= rouge_l(texts, references).per_sample - TOLERANCE).all()
    assert (exact_match(texts, more).per_sample >= exact_match(texts, references).per_sample).all()


@given(pairs=samples)
def test_cider_d_does_not_depend_on_the_cache(pairs: list[tuple[str, list[str]]]) -> None:
    texts, references = [text for text, _ in pairs], [own for _, own in pairs]
    cached = CiderD(references)
    uncached = CiderD((), cached.document_frequencies)
    assert cached.score(texts).tolist() == uncached.score(texts, references).tolist()


@given(first=any_boxes, second=any_boxes)
def test_iou_is_symmetric_and_between_zero_and_one(first: list[tuple], second: list[tuple]) -> None:
    num_pairs = min(len(first), len(second))
    first, second = first[:num_pairs], second[:num_pairs]
    overlap = box_iou(first, second)
    assert overlap.tolist() == box_iou(second, first).tolist()
    assert (overlap >= 0).all()
    assert (overlap <= 1).all()


@given(box=boxes, dx=coordinates, dy=coordinates)
def test_iou_with_itself_is_one_and_translations_keep_it(box: tuple, dx: float, dy: float) -> None:
    area = float(box_area([box])[0])
    assert box_iou([box], [box])[0] == pytest.approx(area / (area + 1e-6), abs=1e-15)
    other = (0.0, 0.0, 20.0, 20.0)
    moved = [(x0 + dx, y0 + dy, x1 + dx, y1 + dy) for x0, y0, x1, y1 in (box, other)]
    # Coordinates are quarters, so that sums and products are exact.
    assert box_iou(moved[:1], moved[1:])[0] == box_iou([box], [other])[0]


@given(pairs=st.lists(st.tuples(boxes, boxes), min_size=1, max_size=8), threshold=st.floats(0.05, 0.9))
def test_accuracies_of_size_classes_add_up(pairs: list[tuple], threshold: float) -> None:
    predicted, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    areas = {"small_area_px": 100.03, "large_area_px": 2000.03}  # no product of quarters
    whole = box_accuracy(predicted, references, threshold)
    parts = {
        size: box_accuracy(predicted, references, threshold, size=size, **areas).per_sample
        for size in ("small", "medium", "large", "mediumsmall", "mediumlarge", "smalllarge")
    }
    assert (parts["small"] + parts["medium"] + parts["large"]).tolist() == whole.per_sample.tolist()
    assert (parts["mediumsmall"] + parts["large"]).tolist() == whole.per_sample.tolist()
    assert (parts["mediumlarge"] + parts["small"]).tolist() == whole.per_sample.tolist()
    assert (parts["smalllarge"] + parts["medium"]).tolist() == whole.per_sample.tolist()
    assert size_mask(references, "all").all()
    assert box_accuracy(predicted, references, threshold + 0.05).value <= whole.value


@given(value=st.floats(-1e6, 1e6), num_samples=st.integers(1, 40))
def test_bootstrap_of_a_constant_has_no_width(value: float, num_samples: int) -> None:
    interval = bootstrap_mean([value] * num_samples, num_resamples=50)
    assert interval.low == interval.high == interval.mean


@given(values=scores, shift=st.integers(-100, 100))
def test_bootstrap_bounds_lie_within_the_scores_and_shift_with_them(values: list[float], shift: int) -> None:
    interval = bootstrap_mean(values, num_resamples=50)
    slack = 1e-9  # means of scores up to 1e3 in float64
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack
    shifted = bootstrap_mean([value + shift for value in values], num_resamples=50)
    assert shifted.low == pytest.approx(interval.low + shift, abs=slack)
    assert shifted.high == pytest.approx(interval.high + shift, abs=slack)


@given(values=scores)
def test_a_system_does_not_differ_from_itself(values: list[float]) -> None:
    assert bootstrap_difference(values, values, num_resamples=20) == (0, 0, 0)


@given(num_answers=st.integers(2, 12), data=st.data())
def test_vqa_accuracy_grows_with_agreement(num_answers: int, data: st.DataObject) -> None:
    fewer = data.draw(st.integers(0, num_answers - 1))
    answers = [["cat"] * count + ["dog"] * (num_answers - count) for count in (fewer, fewer + 1)]
    low, high = vqa_accuracy(["cat", "cat"], answers).per_sample
    assert low < high or fewer >= 4


@given(answers=st.lists(st.sampled_from(["cat", "dog", "Two", "2", "a cat"]), min_size=2, max_size=10))
def test_vqa_accuracy_is_the_mean_over_leave_one_out_subsets(answers: list[str]) -> None:
    rest = [answers[:i] + answers[i + 1 :] for i in range(len(answers))]
    matches = [sum(normalize_answer(answer) == "2" for answer in subset) for subset in rest]
    expected = np.mean([min(1, count / 3) for count in matches])
    assert vqa_accuracy(["two"], [answers]).value == pytest.approx(expected, abs=TOLERANCE)
    assert soft_scores(answers).get("2", 0) == pytest.approx(expected, abs=TOLERANCE)


@given(st.text(alphabet=st.sampled_from(list("aTone10.,'-/ \n?!:dsv")), max_size=20))
def test_normalizing_an_answer_twice_changes_nothing(text: str) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once


@given(
    caption=captions,
    names=st.lists(captions, max_size=4),
    vocabulary=st.lists(captions, max_size=6),
)
def test_naming_scores_lie_between_zero_and_one(caption: str, names: list[str], vocabulary: list[str]) -> None:
    assert 0 <= name_recall(caption, names, vocabulary) <= 1
    assert 0 <= name_precision(caption, names, vocabulary) <= 1
    assert mentioned_names(caption, vocabulary) <= set(vocabulary)
    assert all(f" {name} " in f" {caption} " for name in mentioned_names(caption, vocabulary))
    if names:
        listing = " and ".join(names)  # "and" is in no name
        assert name_recall(listing, names, names) == name_precision(listing, names, names) == 1
