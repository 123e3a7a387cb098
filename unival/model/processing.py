"""From examples to tensors and back: the tokenizer and the media transforms that belong to a checkpoint."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from unival.batch import Batch, Example, pad
from unival.data.audio import load_audio
from unival.data.image import load_image
from unival.data.video import load_video
from unival.model.modeling import MEDIA_INPUTS


class UnivalProcessor(ProcessorMixin):
    """Tokenizer plus the media sizes of a model; saved and loaded with it.

    Args:
        tokenizer: Maps text, `<bin_i>` and `<code_i>` to ids.
        num_bins: Number of position bins.
        image_px: Images are resized (both sides, bicubic) to this many pixels.
        video_px, num_frames: Clips are resized likewise and sampled to this many frames.
        sample_rate, audio_seconds: Waveforms are resampled to this rate in Hz and cut or padded to this length.
    """

    tokenizer_class = "PreTrainedTokenizerFast"

    def __init__(
        self,
        tokenizer: Any = None,
        num_bins: int = 100,
        image_px: int = 96,
        video_px: int = 64,
        num_frames: int = 8,
        sample_rate: int = 16000,
        audio_seconds: float = 4.0,
    ) -> None:
        super().__init__(tokenizer)
        self.num_bins = num_bins
        self.image_px = image_px
        self.video_px = video_px
        self.num_frames = num_frames
        self.sample_rate = sample_rate
        self.audio_seconds = audio_seconds

    def image(self, source: Any, image_px: int | None = None) -> Tensor:
        """Load an image as float32 (3, image_px, image_px) in [-1, 1]; by default at the processor's size."""
        return normalise(resize(np.asarray(load_image(source)), image_px or self.image_px)).permute(2, 0, 1)

    def video(self, source: Any) -> Tensor:
        """Load a clip as float32 (3, num_frames, video_px, video_px) in [-1, 1]."""
        frames = load_video(source, self.num_frames)
        return normalise(np.stack([resize(frame, self.video_px) for frame in frames])).permute(3, 0, 1, 2)

    def audio(self, source: Any) -> Tensor:
        """Load a waveform as float32 (samples,) in [-1, 1]; shorter clips are padded with silence."""
        samples = int(self.sample_rate * self.audio_seconds)
        loaded = source if isinstance(source, np.ndarray) else load_audio(source, self.sample_rate)
        waveform = np.asarray(loaded, dtype=np.float32)[:samples]
        return torch.from_numpy(np.pad(waveform, (0, samples - len(waveform))))

    def medium(self, example: Example, image_px: int | None = None) -> Tensor:
        """Load the medium of one example; `image_px` replaces the size of pictures."""
        if example.modality == "image":
            return self.image(example.media, image_px)
        return getattr(self, example.modality)(example.media)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids with `<s>` and `</s>`; a space goes before each text, as in the original (specification 3.2)."""
        return [e.ids for e in self.tokenizer.backend_tokenizer.encode_batch([f" {text}" for text in texts])]

    def decode(self, ids: Tensor) -> list[str]:
        """Return the texts of generated ids (B, T), special tokens dropped, outer spaces stripped."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def collate(
        self, examples: Sequence[Example], task_names: Sequence[str] = (), image_px: int | None = None
    ) -> Batch:
        """Pad examples of one modality to a batch; media with equal ids are loaded and encoded once.

        Raises:
            ValueError: If the examples mix modalities.
        """
        modalities = {example.modality for example in examples}
        if len(modalities) != 1:
            raise ValueError(f"a batch holds one modality, got {sorted(modalities)}")
        pad_id = self.tokenizer.pad_token_id
        prompt = pad(self.encode([e.prompt for e in examples]), pad_id)
        target = pad([ids[1:] for ids in self.encode([e.target for e in examples])], pad_id)
        inputs = {"input_ids": prompt, "attention_mask": prompt.ne(pad_id).long()}
        modality = modalities.pop()
        if modality != "text":
            first = {example.media_id or example.uid: example for example in reversed(examples)}
            row = {key: index for index, key in enumerate(first)}
            inputs[MEDIA_INPUTS[modality]] = torch.stack([self.medium(example, image_px) for example in first.values()])
            if len(row) < len(examples) or list(row) != [e.media_id or e.uid for e in examples]:
                inputs["media_index"] = torch.tensor([row[e.media_id or e.uid] for e in examples])
        return Batch(inputs, target, list(examples), list(task_names))


def normalise(pixels: np.ndarray) -> Tensor:
    """Map uint8 pixels to float32 in [-1, 1] (mean 0.5, std 0.5 per channel)."""
    return torch.from_numpy(np.array(pixels)).float().div_(127.5).sub_(1.0)


def resize(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 pixels to (side, side, 3), bicubic; no copy when the size is right."""
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
