"""Networks that turn pictures and texts into the features of `fid`, from files the user has; nothing is downloaded.

    extract = load_inception("weights-inception-2015-12-05-6726825d.pth")
    features, probabilities = extract(images)           # (N, 2048), (N, 1008)
    clip = load_clip("ViT-B-16", "open_clip_pytorch_model.bin")
    scores = clip_similarity(clip.images(pictures), clip.texts(captions))
    clip = load_clip_folder("models/clip-vit-base-patch16")   # the same from a folder of transformers

`images` are uint8 tensors (N, 3, H, W), `pictures` are PIL images.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unival.errors import UserError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Features = NDArray[np.float64]
NUM_CLASSES = 1008  # of the network that FID and IS are defined with, which is not torchvision's


def load_inception(path: str | Path, device: str = "cpu") -> Callable[["Tensor"], tuple[Features, Features]]:
    """Load the Inception network of the original FID as `torch-fidelity` writes it.

    Args:
        path: The file `weights-inception-2015-12-05-6726825d.pth`.
        device: Where to run.

    Returns:
        A function from uint8 pictures (N, 3, H, W) of any size to pool features (N, 2048) and class probabilities
        (N, 1008), without the bias of the last layer, as both scores are defined.

    Raises:
        UserError: The package or the file is missing, or the file holds other weights.
    """
    path = _existing(path, "weights-inception-2015-12-05-6726825d.pth from the releases of torch-fidelity")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports] - an extra
            FeatureExtractorInceptionV3,
        )
    except ImportError:
        raise UserError("torch-fidelity is not installed", fix='pip install "unival[metrics]"') from None
    import torch

    from unival.pickles.torch_file import read_torch_file, tensors_of

    # The package unpickles what it is given, whatever it is. We read the file as data and give it our own copy.
    tree = read_torch_file(path).tree
    weights = {
        name: tensor.load().clone() for name, tensor in tensors_of(tree if isinstance(tree, dict) else {}).items()
    }
    wanted = ["2048", "logits_unbiased"]
    with tempfile.TemporaryDirectory(prefix="inception-") as folder:
        copy = Path(folder, "weights.pth")
        torch.save(weights, copy)
        try:
            network = FeatureExtractorInceptionV3("inception", wanted, feature_extractor_weights_path=str(copy))
        except (RuntimeError, KeyError) as error:
            raise UserError(f"not the weights of this network: {str(error)[:200]}", where=str(path)) from None
    network = network.to(device).eval()

    @torch.no_grad()
    def extract(images: "Tensor") -> tuple[Features, Features]:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            what = f"pictures are {images.dtype} {tuple(images.shape)}"
            raise UserError(what, fix="pass uint8 of shape (N, 3, height, width)")
        features, logits = network(images.to(device))
        return _double(features), _double(torch.softmax(logits.double(), dim=1))

    return extract


class ClipModel:
    """An open_clip model with its own preprocessing and tokenizer.

    Args:
        model: What `open_clip.create_model_and_transforms` returns first.
        preprocess: Its transform for evaluation: PIL image to float tensor (3, S, S).
        tokenize: What `open_clip.get_tokenizer` returns: texts to ids (N, length).
        device: Where to run.
        batch_size: Pictures or texts at once.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Callable[["Image.Image"], "Tensor"],
        tokenize: Callable[[list[str]], "Tensor"],
        device: str = "cpu",
        batch_size: int = 64,
    ) -> None:
        self.model, self.preprocess, self.tokenize = model.to(device).eval(), preprocess, tokenize
        self.device, self.batch_size = device, batch_size

    def images(self, pictures: Sequence["Image.Image"]) -> Features:
        """Return embeddings (N, D), not normalised."""
        import torch

        def encode(part: Sequence["Image.Image"]) -> "Tensor":
            return self.model.encode_image(
                torch.stack([self.preprocess(p.convert("RGB")) for p in part]).to(self.device)
            )

        return self._in_batches(pictures, encode)

    def texts(self, captions: Sequence[str]) -> Features:
        """Return embeddings (N, D), not normalised; a text longer than the context is cut by the tokenizer."""
        return self._in_batches(
            captions, lambda part: self.model.encode_text(self.tokenize(list(part)).to(self.device))
        )

    def _in_batches(self, items: Sequence[Any], encode: Callable[[Sequence[Any]], "Tensor"]) -> Features:
        import torch

        if not items:
            raise UserError("nothing to encode", fix="pass at least one picture or text")
        with torch.no_grad():
            starts = range(0, len(items), self.batch_size)
            return np.concatenate([_double(encode(items[start : start + self.batch_size])) for start in starts])


def load_clip(name: str, path: str | Path, device: str = "cpu") -> ClipModel:
    """Load an open_clip model from a local file.

    Args:
        name: Of the architecture, such as `ViT-B-16`.
        path: Its weights.
        device: Where to run.

    Raises:
        UserError: An unknown architecture, or no such file, or other weights.
    """
    import open_clip

    from unival.errors import did_you_mean

    if name not in open_clip.list_models():
        raise UserError(f"unknown CLIP architecture {name!r}", fix=did_you_mean(name, open_clip.list_models()))
    path = _existing(path, "the weights of an open_clip model")
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=str(path), device=device, weights_only=True
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"not the weights of {name}: {str(error)[:200]}", where=str(path)) from None
    return ClipModel(model, preprocess, open_clip.get_tokenizer(name), device)  # pyright: ignore[reportArgumentType]


def load_clip_folder(path: str | Path, device: str = "cpu") -> ClipModel:
    """Load a CLIP model of `transformers` from a local folder.

    Args:
        path: The folder, with the files of its tokenizer and of its image processor.
        device: Where to run.

    Raises:
        UserError: No such folder, or it holds something else.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel

    fix = "give a folder with a CLIP model, its tokenizer and its image processor; nothing is downloaded"
    if not Path(path).is_dir():
        raise UserError(f"no such folder: {path}", fix=fix)
    try:
        kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        if kind != "clip":
            raise UserError(f"a model of type {kind!r}", where=str(path), fix=fix)
        model: Any = CLIPModel.from_pretrained(path, local_files_only=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        processor: Any = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(str(error).strip().splitlines()[0][:200], where=str(path), fix=fix) from None
    length = model.config.text_config.max_position_embeddings

    def preprocess(picture: "Image.Image") -> "Tensor":
        return processor(images=picture, return_tensors="pt")["pixel_values"][0]

    def tokenize(texts: list[str]) -> "Tensor":
        # Attention is causal and the embedding is that of the end token: padding behind it needs no mask.
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": length}
        return tokenizer(texts, return_tensors="pt", **options)["input_ids"]

    return ClipModel(_TransformersClip(model), preprocess, tokenize, device)


class _TransformersClip:
    """The methods of open_clip on a model of `transformers`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def to(self, device: str) -> "_TransformersClip":
        self.model.to(device)
        return self

    def eval(self) -> "_TransformersClip":
        self.model.eval()
        return self

    def encode_image(self, pixels: "Tensor") -> "Tensor":
        return self.model.get_image_features(pixels).pooler_output

    def encode_text(self, ids: "Tensor") -> "Tensor":
        return self.model.get_text_features(ids).pooler_output


def _existing(path: str | Path, what: str) -> Path:
    if not Path(path).is_file():
        raise UserError(f"no such file: {path}", fix=f"give {what}; nothing is downloaded")
    return Path(path)


def _double(tensor: "Tensor") -> Features:
    return tensor.double().cpu().numpy()
