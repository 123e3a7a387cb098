"""The base model against the numbers of the specification's section 13.3: weights made of sines, double precision.

Independent of the other recordings: another recipe for weights, other inputs. Needs 3 GB and a minute, so it is slow.
"""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity import golden
from tests.parity.test_golden_base import configuration
from tests.parity.test_golden_search import SOURCE, picture_inputs, sines
from unival.model.audio import PannCNN
from unival.model.image import image_features
from unival.model.modeling import UnivalForConditionalGeneration

PREFIX = torch.tensor([[0, 10, 2335, 15, 5, 6964], [0, 4420, 1, 1, 1, 1]])
SOME_IDS = torch.tensor([0, 2, 50264, 50265, 58457])
ATOL = 1e-5  # softmax is in float32 there


@pytest.fixture(scope="module")
def model() -> UnivalForConditionalGeneration:
    model = UnivalForConditionalGeneration(configuration("base_audio")).eval().double()
    kept = {"decoder.embed_tokens.weight", "decoder.output_projection.weight"}  # tied
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            is_table = ".stft." in name or name.endswith("melW")
            if tensor.is_floating_point() and name not in kept and not is_table:
                tensor.copy_(sines(name, tensor.shape))
    return model


def video() -> Tensor:
    row, column, channel, frame, clip = (torch.arange(n, dtype=torch.float64) for n in (64, 64, 3, 8, 2))
    wave = 0.05 * (channel + 1)[:, None, None, None] * (row + 1)[:, None] + 0.11 * (column + 1)
    return torch.sin(wave + 0.3 * frame[:, None, None] + clip[:, None, None, None, None])


def audio() -> Tensor:
    sample, clip = torch.arange(96000, dtype=torch.float64), torch.arange(1, 3, dtype=torch.float64)[:, None]
    tone = 0.5 * torch.sin(2.0 * math.pi * 440.0 * clip * sample / 48000.0)
    return tone + 0.25 * torch.sin(2.0 * math.pi * 1000.0 * sample / 48000.0)


def close(ours: Tensor, expected: float | list[float], atol: float = ATOL) -> None:
    torch.testing.assert_close(ours.double(), torch.tensor(expected, dtype=torch.float64), atol=atol, rtol=1e-5)


@torch.inference_mode()
def logits_of(model: UnivalForConditionalGeneration, **media: Tensor) -> Tensor:
    mask = PREFIX.ne(1).long()  # of the numbers below some are at padding, where other padding must not be seen
    return model(input_ids=SOURCE, decoder_input_ids=PREFIX, decoder_attention_mask=mask, **media).logits


@pytest.mark.slow
def test_picture_features_and_logits(model: UnivalForConditionalGeneration) -> None:
    pixels = picture_inputs(SOURCE)["pixel_values"]
    with torch.inference_mode():
        features = image_features(model.encoder.embed_images, pixels)
        encoded = model.encoder(SOURCE, pixel_values=pixels)
    assert features.shape == (2, 2048, 3, 4)
    close(features.mean(), 1.35729161)
    close(features.flatten()[:5], [3.041292, 3.0804307, 2.4966645, 3.0201605, 3.0294904])
    close(encoded.last_hidden_state[0, 0, :5], [2.1007365, 0.9204308, 0.0998995, -0.8395049, -0.3114199])
    close(encoded.position_embeddings[0].std(), 0.99919893, 1e-4)
    logits = logits_of(model, pixel_values=pixels)
    close(logits.flatten()[:5], [4.155682, 0.2622863, -4.0751467, -1.5135646, 3.610405], 1e-4)
    close(logits[0, 3, SOME_IDS], [-7.3750599, 8.4414489, -8.3799129, 1.1114166, 3.177902], 1e-4)
    close(logits[1, 1, :4], [-13.3463623, -7.7095482, 10.9791369, 11.0807045], 1e-4)
    assert logits.argmax(-1).tolist() == [
        [28403, 50505, 12607, 14159, 42348, 11794],
        [53697, 22010, 52035, 1514, 13937, 33722],
    ]


@pytest.mark.slow
def test_a_row_without_its_picture(model: UnivalForConditionalGeneration) -> None:
    with torch.inference_mode():
        logits = model(input_ids=SOURCE[1:], decoder_input_ids=PREFIX[1:]).logits
    close(logits[0, 1, :4], [-9.1336402, -5.9592261, 7.3038531, 8.2018824], 1e-4)


@pytest.mark.slow
def test_video_features_and_logits(model: UnivalForConditionalGeneration) -> None:
    with torch.inference_mode():
        features = model.encoder.embed_videos(video())
    assert features.shape == (2, 2048, 1, 2, 2)
    close(features.flatten()[:5], [4.2176863, 4.6112379, 3.3974139, 1.9826662, 10.8292796])
    logits = logits_of(model, pixel_values_videos=video())
    close(logits[0, 3, SOME_IDS], [-5.6892345, 6.5570635, -6.505805, 0.9924114, 2.5977543], 1e-4)


@pytest.mark.slow
def test_sound_features_and_logits(model: UnivalForConditionalGeneration) -> None:
    encoder = model.encoder.embed_audios
    with torch.inference_mode():
        power = encoder.spectrogram(audio())
        log_mel = encoder.logmel_extractor(power)
        features = encoder(audio())
    assert power.shape == (2, 481, 513)
    close(power.flatten()[:5], [451.0884765, 463.5376544, 489.2417601, 551.1483873, 642.7761597], 1e-2)
    close(log_mel.flatten()[:5], [10.2631085, 10.9070746, 11.934738, 13.4309084, 16.3177195], 1e-3)
    assert features.shape == (2, 2048, 15, 2)
    close(features.flatten()[:5], [0.0268711, 0.0259726, 0.0254878, 0.0236676, 0.0250964])
    logits = logits_of(model, input_values=audio())
    close(logits[0, 3, SOME_IDS], [-7.3529018, 8.4199422, -8.358268, 1.1195962, 3.1808303], 1e-3)


@pytest.mark.slow
def test_code_logits(model: UnivalForConditionalGeneration) -> None:
    source = torch.tensor([[0, 99, 16, 5, 1498, 2274, 116, 3747, 35, 10, 2335, 2]])
    prefix = torch.tensor([[0, *(50265 + (37 * i) % 8192 for i in range(40))]])
    with torch.inference_mode():
        text = model(input_ids=source, decoder_input_ids=PREFIX[:1]).logits
        codes = model(input_ids=source, decoder_input_ids=prefix, writes_codes=True).logits
    close(text.flatten()[:5], [6.7192696, 0.1326044, -6.6785533, -2.1832617, 6.0081803], 1e-4)
    close(codes[0, 40, torch.tensor([50265, 50266, 58456])], [-3.8598845, 4.7548503, -6.4864103], 1e-4)


@pytest.mark.skipif(not golden.HAS_GOLDEN, reason=golden.MISSING)
def test_our_filter_bank_is_the_originals() -> None:
    expected = load_file(golden.GOLDEN / "mel_filter.safetensors")["melW"]
    with torch.device("meta"):
        extractor = PannCNN().logmel_extractor
    torch.testing.assert_close(extractor.filter_bank(), expected, atol=1e-6, rtol=1e-4)
