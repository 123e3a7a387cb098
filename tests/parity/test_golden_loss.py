"""Losses and gradients against those of the original (random weights, float32, CPU), for every recorded case.

By default what the ResNet makes of the pictures is injected from a stored copy, so that the cases run everywhere in
seconds; the whole model, with batch norm in training, is marked slow.
"""

import functools
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.parity import golden
from tests.parity.golden import EOS, PAD, find, read_cases, recorded, value
from unival.batch import Batch, Example
from unival.generate.trie import AnswerTrie
from unival.model.modeling import UnivalForConditionalGeneration
from unival.objectives.cross_entropy import Objective, Terms

# From the recordings' README.
LOSS_RTOL, LOSS_ATOL = 1e-5, 1e-4  # absolute where the sum is near zero
GRADIENT_RTOL = 1e-4  # for parameters above a ten-thousandth of the total
BATCH_NORM_RTOL = 3e-3  # batch statistics over few values amplify rounding
GROUP = "tiny_loss"
CASES = [case["name"] for case in read_cases(GROUP) if not case["train_mode"] and "outputs" in case]
ARGUMENTS = {
    "label_smoothing": "label_smoothing",
    "log_end": "log_end",
    "drop_worst_ratio": "drop_worst_ratio",
    "drop_worst_after": "drop_worst_after",
    "ignore_prefix_size": "ignore_prefix",
    "reg_alpha": "rdrop",
}
INERT = {"drop_best_ratio", "drop_best_after"}  # accepted and never used by the original
HANDLED = {"constraint_range", "sentence_avg", "use_rdrop"}


def objective_of(case: dict[str, Any]) -> Objective:
    """Translate the options of the original."""
    options = case["options"]
    assert not options.keys() - ARGUMENTS.keys() - INERT - HANDLED
    arguments = {ours: options[theirs] for theirs, ours in ARGUMENTS.items() if theirs in options}
    if "constraint_range" in options:
        arguments["constraint_range"] = [int(bound) for bound in options["constraint_range"].split(",")]
    if options.get("sentence_avg"):
        arguments["normalise"] = "example"
    if "conf" in case:
        arguments["confidence"] = "confidence"
    objective = Objective(None, **arguments)  # type: ignore[arg-type]
    if "answers" in case:
        objective.tries = {"all": AnswerTrie(case["answers"], EOS)}
    return objective


def batches_of(case: dict[str, Any], images: Tensor | None) -> list[Batch]:
    """Return the batch of a case; rows without a picture form a second batch, of text only."""
    source, target = value(case, GROUP, "src_tokens"), value(case, GROUP, "target")
    prefix = value(case, GROUP, "prev_output_tokens")
    is_code = bool(value(case, GROUP, "code_masks").all()) if "code_masks" in case["inputs"] else False
    has_image = value(case, GROUP, "patch_masks") if "patch_masks" in case["inputs"] else torch.zeros(len(source)) > 0
    batches = []
    for modality, rows in (("image", has_image), ("text", ~has_image)):
        if rows.any():
            inputs = {"input_ids": source[rows], "attention_mask": source[rows].ne(PAD).long()}
            if modality == "image":
                assert images is not None
                inputs["pixel_values"] = images[rows]
            examples = [
                Example(str(i), "", modality=modality, record={"confidence": case.get("conf", [1.0] * 3)[i]})
                for i in rows.nonzero()[:, 0].tolist()
            ]
            batches.append(Batch(inputs, target[rows], examples, prefix=prefix[rows], writes_codes=is_code))
    return batches


def check(model: UnivalForConditionalGeneration, case: dict[str, Any], images: Tensor | None, rtol: float) -> None:
    """Compare loss, number of tokens and gradients of the parameters that `model` has."""
    objective, expected, batches = objective_of(case), case["outputs"], batches_of(case, images)
    parts = [objective.terms(model, batch) for batch in batches]
    terms = objective.kept(Terms(*(torch.cat(values) for values in zip(*parts, strict=True))), case["update_num"])
    loss = terms.total.sum()
    model.zero_grad()
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=LOSS_RTOL, abs=LOSS_ATOL)
    assert terms.nll.sum().item() == pytest.approx(expected["nll_loss"], rel=LOSS_RTOL)
    if objective.normalise == "token":
        assert len(terms.total) * objective.passes == expected["sample_size"]
    else:
        assert sum(len(batch.examples) for batch in batches) == expected["sample_size"]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    compared = 0
    for name, norm in expected["grad_norms"].items():
        if name in gradients and norm > 1e-4 * expected["grad_norm_total"]:
            gradient = gradients[name]
            assert gradient is not None, name
            assert gradient.norm().item() == pytest.approx(norm, rel=rtol), name
            compared += 1
    assert compared >= 8
    for name, entry in expected.get("grads", {}).items():
        if name in gradients:
            theirs = recorded(GROUP)[entry["tensor"]]
            torch.testing.assert_close(gradients[name], theirs, atol=rtol * float(theirs.norm()), rtol=0.0)


class Pictures(nn.Module):
    """Stands for the picture encoder: looks up the stored features (3, D, H, W) of pictures given by number."""

    def __init__(self) -> None:
        super().__init__()
        self.features = load_file(golden.COPY / "loss_pictures.safetensors")["projected"]

    def forward(self, numbers: Tensor) -> list[Tensor]:
        return [self.features[numbers[:, 0, 0, 0].long()]]


@functools.cache
def injected() -> UnivalForConditionalGeneration:
    model = golden.build_tiny(has_encoders=False)
    model.encoder.embed_images, model.encoder.image_proj = Pictures(), nn.Identity()
    return model


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_the_originals(name: str) -> None:
    numbers = torch.arange(3.0)[:, None, None, None].expand(3, 3, 1, 1)
    check(injected(), find(GROUP, name), numbers, GRADIENT_RTOL)


def test_every_recorded_case_is_compared_but_the_one_that_fails_in_the_original() -> None:
    assert len(CASES) == 21
    left_out = {case["name"] for case in read_cases(GROUP)} - set(CASES)
    assert left_out <= {"ce_smooth_accuracy", "ce_train_mode_bn"}


@pytest.mark.skipif(not golden.HAS_GOLDEN, reason=golden.MISSING)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ce_smooth", "ce_train_mode_bn"])
def test_the_whole_model_with_its_picture_encoder(name: str) -> None:
    case, model = find(GROUP, name), golden.build_tiny(has_encoders=True)
    model.train(case["train_mode"])
    rtol = BATCH_NORM_RTOL if case["train_mode"] else GRADIENT_RTOL
    check(model, case, value(case, GROUP, "patch_images"), rtol)
    buffers = dict(model.named_buffers())
    for entry_name, entry in case["outputs"].get("buffers_after", {}).items():
        torch.testing.assert_close(buffers[entry_name], recorded(GROUP)[entry["tensor"]], atol=1e-4, rtol=1e-4)
