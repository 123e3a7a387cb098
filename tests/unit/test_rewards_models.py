"""Rewards that need a program or a network: tiny random folders, with values computed beside the rewards."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
)

from tests.unit.test_metrics_java_scores import FAKE_METEOR, fake_java
from unival.codec.base import load_codec, to_grid, to_picture
from unival.codec.train import SMALL, save_codec
from unival.codec.vqgan import VQGAN
from unival.errors import UserError
from unival.metrics.feature_models import load_clip_folder
from unival.rewards import caption, check_rewards, get_reward, learned, picture

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "apple", "above", "cat", "dog", "what", "is", "the"]
RECORDS: list[dict[str, Any]] = [
    {"uid": "1", "captions": ["a red apple", "the cat"], "question": "what is above the cat"},
    {"uid": "2", "caption": "a dog", "question": "what is the dog"},
]
TEXTS = ["a red apple above the cat", "a dog"]


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    yield
    for cached in (learned._encoder, learned._cross_encoder, picture._codec, picture._clip):
        cached.cache_clear()


def save_tokenizer(folder: Path, end: str = "[SEP]") -> Any:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=f"[CLS] $A {end}",
        pair=f"[CLS] $A {end} $B:1 {end}:1",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", end)],
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)
    fast.save_pretrained(folder)
    return fast


def bert_config(num_labels: int = 1) -> BertConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return BertConfig(
        vocab_size=len(WORDS), max_position_embeddings=16, num_labels=num_labels, initializer_range=0.5, **sizes
    )


def sentence_encoder(folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = BertModel(bert_config()).eval()
    model.save_pretrained(folder)
    return model, save_tokenizer(folder)


def vector(model: Any, tokenizer: Any, text: str, takes_first: bool = False) -> torch.Tensor:
    """Embed one text alone, without padding."""
    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return torch.nn.functional.normalize(states[0] if takes_first else states.mean(0), dim=0)


@pytest.mark.parametrize("takes_first", [False, True])
def test_sentence_similarity_is_the_cosine_with_the_nearest_reference(tmp_path: Path, takes_first: bool) -> None:
    model, tokenizer = sentence_encoder(tmp_path)
    if takes_first:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    reward = get_reward("sentence_similarity", {"folder": str(tmp_path), "batch_size": 2})
    found = reward(TEXTS, RECORDS)
    own = [vector(model, tokenizer, text, takes_first) for text in TEXTS]
    others = [vector(model, tokenizer, text, takes_first) for text in ("a red apple", "the cat")]
    assert found.dtype == np.float64
    assert found[0] == pytest.approx(max(float(own[0] @ other) for other in others), abs=1e-5)
    assert found[1] == pytest.approx(1.0)  # the reference itself
    assert abs(found[0]) < 0.999
    assert reward([], []).shape == (0,)
    assert reward(["cat " * 40], RECORDS[1:])[0] <= 1.0  # cut, not refused
    by_field = get_reward("sentence_similarity", {"folder": str(tmp_path), "field": "question"})
    assert by_field(["what is the dog"], RECORDS[1:])[0] == pytest.approx(1.0)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_relevance_is_the_log_odds_of_a_label(tmp_path: Path, num_labels: int) -> None:
    torch.manual_seed(0)
    model: Any = BertForSequenceClassification(bert_config(num_labels)).eval()
    if num_labels == 3:
        model.config.id2label = {0: "bad", 1: "good", 2: "odd"}
        model.config.label2id = {"bad": 0, "good": 1, "odd": 2}
    model.save_pretrained(tmp_path)
    tokenizer = save_tokenizer(tmp_path)
    params = {"folder": str(tmp_path)} | ({"label": "good"} if num_labels == 3 else {})
    found = get_reward("relevance", params)(TEXTS, RECORDS)
    for value, text, record in zip(found, TEXTS, RECORDS, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(record["question"], text, return_tensors="pt")).logits[0]
        probability = logits.sigmoid()[0] if num_labels == 1 else logits.softmax(-1)[1]
        assert value == pytest.approx(float(probability.logit()), abs=1e-4)
    assert abs(found[0] - found[1]) > 1e-3
    if num_labels == 3:
        with pytest.raises(UserError, match=r"which of its 3 labels is good\?.*bad, good, odd"):
            check_rewards({"relevance": 1.0}, {"relevance": {"folder": str(tmp_path)}})
        with pytest.raises(UserError, match=r"unknown label 'goood'.*did you mean 'good'"):
            check_rewards({"relevance": 1.0}, {"relevance": params | {"label": "goood"}})


def clip_folder(folder: Path) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = small | {"vocab_size": len(WORDS), "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    vision = small | {"image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, initializer_factor=5.0)
    CLIPModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessor(**sides).save_pretrained(folder)


def codec_folder(folder: Path) -> None:
    torch.manual_seed(0)
    codec = VQGAN(replace(SMALL, channels=4, multipliers=(1, 2), groups=2, num_codes=8, attention=())).eval()
    save_codec(codec, folder)


def test_clip_score_draws_the_codes_and_compares_the_picture_with_the_caption(tmp_path: Path) -> None:
    clip_folder(tmp_path / "clip")
    codec_folder(tmp_path / "codec")
    codec = load_codec(tmp_path / "codec")
    params = {"clip": str(tmp_path / "clip"), "codec": str(tmp_path / "codec")}
    rng = np.random.default_rng(0)
    codes = [rng.integers(8, size=64).tolist(), rng.integers(8, size=65).tolist()]
    texts = ["".join(f"<code_{code}>" for code in own) for own in codes]
    reward = get_reward("clip_score", params)
    found = reward([*texts, "a dog"], [*RECORDS, RECORDS[1]])
    clip = load_clip_folder(tmp_path / "clip")
    for value, own, text in zip(found, codes, ("a red apple", "a dog"), strict=False):
        drawn = Image.fromarray(to_picture(codec.decode(to_grid(own[:64], 8))[0]))
        shown, said = clip.images([drawn])[0], clip.texts([text])[0]
        assert value == pytest.approx(shown @ said / np.linalg.norm(shown) / np.linalg.norm(said), abs=1e-4)
    assert abs(found[0] - found[1]) > 1e-3
    assert found[2] == 0.0  # no codes, no picture
    assert reward(codes, RECORDS) == pytest.approx(found[:2], abs=1e-5)
    assert reward([], []).shape == (0,)


def test_the_end_of_a_caption_counts_and_padding_behind_it_does_not(tmp_path: Path) -> None:
    """In `transformers` the embedding of a text is that of its end token, wherever that stands."""
    clip_folder(tmp_path)
    clip = load_clip_folder(tmp_path)
    alone = clip.model.model.get_text_features(torch.tensor([[1, 4, 9, 2]])).pooler_output
    np.testing.assert_allclose(clip.texts(["a dog"]), alone.detach().double().numpy(), atol=1e-5)


def test_meteor_starts_its_program_once(tmp_path: Path) -> None:
    (tmp_path / "program.jar").touch()
    log = tmp_path / "starts"
    java = fake_java(tmp_path, f"open({str(log)!r}, 'a').write('x')\n{FAKE_METEOR}")
    reward = get_reward("meteor", {"jar": str(tmp_path / "program.jar"), "java": java})
    records = [{"caption": "a dog sits"}, {"captions": ["a cat"]}]
    try:
        for _ in range(3):
            assert reward(["a dog", "a bird"], records).tolist() == pytest.approx([1.0, 0.5])
        assert log.read_text() == "x"
        assert reward([], []).shape == (0,)
    finally:
        caption._meteor(str(tmp_path / "program.jar"), java).close()  # type: ignore[arg-type]
        caption._meteor.cache_clear()


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("meteor", {"java": "no-such-java", "jar": __file__}, r"need Java"),
        ("meteor", {"jar": "absent.jar"}, r"no such file: absent.jar.*unival\[coco-java\]"),
        ("sentence_similarity", {}, "parameter 'folder' is missing"),
        ("relevance", {"folder": "absent"}, r"no model in 'absent'.*nothing is downloaded"),
        ("clip_score", {"codec": "absent", "clip": "absent"}, "codec: no such file or folder: absent"),
        ("clip_score", {"codec": __file__, "clip": __file__}, "."),  # neither a codec nor a model
    ],
)
def test_what_a_reward_lacks_is_told_before_training(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_rewards({name: 1.0}, {name: params})


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no AutoModel of transformers|Unrecognized model"):
        check_rewards({"sentence_similarity": 1.0}, {"sentence_similarity": {"folder": str(tmp_path)}})
    sentence_encoder(tmp_path / "bert")
    with pytest.raises(UserError, match="a model of type 'bert'"):
        load_clip_folder(tmp_path / "bert")
    with pytest.raises(UserError, match=r"no such folder.*nothing is downloaded"):
        load_clip_folder(tmp_path / "absent")


def test_rewards_that_are_fitted_on_data_are_checked_without_it() -> None:
    check_rewards({"cider_d": 0.1, "name_precision": 1.0, "iou": 1.0}, given={"num_bins": 10})
    with pytest.raises(UserError, match="not a finite number"):
        check_rewards({"cider_d": float("inf")})
