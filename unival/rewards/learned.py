"""Rewards by a network for text in a local folder of `transformers`: a sentence encoder, a classifier of pairs.

    get_reward("sentence_similarity", {"folder": "models/all-MiniLM-L6-v2"})
    get_reward("relevance", {"folder": "models/ms-marco-MiniLM-L-12-v2", "field": "question"})

A network is loaded once in every process; nothing is downloaded.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType

import numpy as np

from unival.errors import UserError, did_you_mean
from unival.metrics.score import check_pairs
from unival.rewards.record import Record, Rewards, empty, fields, texts_of

if TYPE_CHECKING:
    from torch import Tensor

ModelFolder = NewType("ModelFolder", str)
"""A folder with `config.json` (or `model.onnx`), weights and tokenizer; `get_reward` looks whether it is there."""
POOLING = "1_Pooling/config.json"  # of sentence-transformers: how its model makes one vector of many


def sentence_similarity(
    predictions: Sequence[str],
    records: Sequence[Record],
    *,
    folder: ModelFolder,
    field: str = "captions",
    device: str = "cpu",
    batch_size: int = 64,
) -> Rewards:
    """Score the cosine, -1 to 1, of the sentence embeddings of a text and of the nearest of its references.

    Args:
        predictions, records: What is scored.
        folder: Sentence encoder. Its tokens are averaged, unless the folder says that the first stands for all
            (`1_Pooling/config.json` of sentence-transformers).
        field: Where the references are, one text or several.
        device: Where to run.
        batch_size: Texts at once.
    """
    network = _encoder(folder, device)
    check_pairs(predictions, records, "records")
    if not predictions:
        return empty()
    references = [texts_of(record, field) for record in records]
    texts = list(dict.fromkeys([*predictions, *(text for own in references for text in own)]))  # each is embedded once
    vectors = dict(zip(texts, network.embed(texts, batch_size), strict=True))
    pairs = zip(predictions, references, strict=True)
    return np.array([max(float(vectors[text] @ vectors[other]) for other in own) for text, own in pairs])


def relevance(
    predictions: Sequence[str],
    records: Sequence[Record],
    *,
    folder: ModelFolder,
    field: str = "question",
    label: str = "",
    device: str = "cpu",
    batch_size: int = 64,
) -> Rewards:
    """Score how well a text answers, follows or sums up another by the log-odds of a cross-encoder.

    Args:
        predictions, records: What is scored.
        folder: Classifier of pairs. With one output, such as those for MS MARCO, the reward is that logit. A folder
            without `config.json` has `model.onnx` and `tokenizer.json`, and needs `pip install onnxruntime`.
        field: The text that comes first in the pair, such as the question or the text that is to be summarised.
        label: Of several outputs, the one that is good: its logit minus the log-sum-exp of the others.
        device: Where to run.
        batch_size: Pairs at once.

    Raises:
        UserError: Several outputs and no such label.
    """
    network = _cross_encoder(folder, device)
    column = find_label(network.labels, label, folder)
    queries = fields(predictions, records, field)
    if not predictions:
        return empty()
    pairs = list(zip(queries, predictions, strict=True))
    logits = np.concatenate([network.logits(pairs[i : i + batch_size]) for i in range(0, len(pairs), batch_size)])
    others = np.delete(logits, column, axis=1)
    return logits[:, column] - (np.logaddexp.reduce(others, axis=1) if others.size else 0.0)


def find_label(labels: Sequence[str], label: str, folder: str) -> int:
    """Return the number of a label, which a classifier with one output need not have.

    Raises:
        UserError: There is no such label.
    """
    if not label and len(labels) == 1:
        return 0
    if label not in labels:
        what = f"unknown label {label!r}" if label else f"which of its {len(labels)} labels is good?"
        raise UserError(what, where=folder, fix=f"label: {did_you_mean(label, labels)}")
    return labels.index(label)


class Network:
    """A network with its tokenizer; texts are cut at its longest input."""

    def __init__(self, kind: str, folder: str, device: str) -> None:
        import transformers

        options: dict[str, Any] = {"local_files_only": True}
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **options)
            model = getattr(transformers, kind).from_pretrained(folder, **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"no {kind} of transformers: {reason}", where=folder, fix="check the folder") from None
        self.folder, self.model = folder, model.to(device).eval().requires_grad_(False)
        longest = getattr(model.config, "max_position_embeddings", self.tokenizer.model_max_length)
        self.longest = min(longest, self.tokenizer.model_max_length)

    def inputs(self, *texts: Sequence[str]) -> Any:
        """Return padded tensors of texts, or of pairs."""
        options: dict[str, Any] = {"truncation": True, "max_length": self.longest, "padding": True}
        return self.tokenizer(*map(list, texts), return_tensors="pt", **options).to(self.model.device)


class SentenceEncoder(Network):
    """Texts to unit vectors."""

    def __init__(self, folder: str, device: str) -> None:
        super().__init__("AutoModel", folder, device)
        pooling = Path(folder, POOLING)
        content = json.loads(pooling.read_text(encoding="utf-8")) if pooling.is_file() else {}
        self.takes_first = bool(content.get("pooling_mode_cls_token"))

    def embed(self, texts: Sequence[str], batch_size: int) -> Rewards:
        """Return unit vectors (N, D) in float64."""
        import torch

        with torch.no_grad():
            parts = [self._embed(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
        return torch.cat(parts).cpu().numpy()

    def _embed(self, texts: Sequence[str]) -> "Tensor":
        inputs = self.inputs(texts)
        states = self.model(**inputs).last_hidden_state.double()  # N T D
        mask = inputs["attention_mask"][..., None]
        vectors = states[:, 0] if self.takes_first else (states * mask).sum(1) / mask.sum(1)
        return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)


class CrossEncoder(Network):
    """Pairs of texts to logits."""

    def __init__(self, folder: str, device: str) -> None:
        super().__init__("AutoModelForSequenceClassification", folder, device)
        self.labels = [str(name) for _, name in sorted(self.model.config.id2label.items())]

    def logits(self, pairs: Sequence[tuple[str, str]]) -> Rewards:
        """Return logits (N, labels) in float64."""
        import torch

        with torch.no_grad():
            return self.model(**self.inputs(*zip(*pairs, strict=True))).logits.double().cpu().numpy()


class OnnxCrossEncoder:
    """The same from `model.onnx` and `tokenizer.json`, as packages without PyTorch bring it; runs on the CPU."""

    def __init__(self, folder: str) -> None:
        try:
            import onnxruntime  # pyright: ignore[reportMissingImports]  # optional
        except ImportError:
            raise UserError("onnxruntime is not installed", where=folder, fix="pip install onnxruntime") from None
        from tokenizers import Tokenizer

        self.session = onnxruntime.InferenceSession(Path(folder, "model.onnx"), providers=["CPUExecutionProvider"])
        self.names = [given.name for given in self.session.get_inputs()]
        self.labels = [str(index) for index in range(self.session.get_outputs()[0].shape[-1])]
        self.tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self.tokenizer.enable_truncation(512)  # positions of BERT
        self.tokenizer.enable_padding()

    def logits(self, pairs: Sequence[tuple[str, str]]) -> Rewards:
        """Return logits (N, labels) in float64."""
        rows = self.tokenizer.encode_batch(list(pairs))
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        feed = {name: np.array([getattr(row, columns[name]) for row in rows], dtype=np.int64) for name in self.names}
        return self.session.run(None, feed)[0].astype(np.float64)


@lru_cache(maxsize=4)
def _encoder(folder: str, device: str) -> SentenceEncoder:
    return SentenceEncoder(folder, device)


@lru_cache(maxsize=4)
def _cross_encoder(folder: str, device: str) -> CrossEncoder | OnnxCrossEncoder:
    return CrossEncoder(folder, device) if Path(folder, "config.json").is_file() else OnnxCrossEncoder(folder)
