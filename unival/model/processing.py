"""From examples to tensors and back: the tokenizer and the media transforms that belong to a checkpoint."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop
from transformers import BatchFeature, ProcessorMixin

from unival.batch import Batch, Example, decoder_sides, pad
from unival.data.audio import fit_length, load_audio, resample
from unival.data.bad_rows import decoding
from unival.data.buffers import empty
from unival.data.image import load_image, load_pixels
from unival.data.video import Decoder, frame_indices, load_video
from unival.errors import UserError
from unival.model.encoder import MEDIA_INPUTS

MASK = "<mask>"
RELEASED: dict[str, Any] = {
    "image_px": 480,
    "video_px": 384,
    "video_fit": "centre_crop",
    "num_frames": 8,
    "sample_rate": 48000,
    "audio_seconds": 10.0,
    "audio_pad": "repeat",
    "audio_crop": "centre",
    "audio_int16": True,
}
"""Settings of the released models, where their files do not say otherwise; those of `configs/model/base.yaml`."""

CHOICES = {
    "video_fit": ("resize", "centre_crop"),
    "audio_pad": ("zero", "repeat"),
    "audio_crop": ("start", "centre", "random"),
    "video_sampling": ("middle", "random"),
    "video_decoder": ("av", "decord", "torchcodec"),
}
SIZES = {"image_px": int, "video_px": int, "num_frames": int, "sample_rate": int, "audio_seconds": int | float}


class UnivalProcessor(ProcessorMixin):
    """Tokenizer plus the media sizes of a model; saved and loaded with it.

    The defaults are the tiny model's; `RELEASED` are the original's.

    Args:
        tokenizer: Maps text, `<bin_i>` and `<code_i>` to ids.
        num_bins: Number of position bins.
        image_px: Images are resized (both sides, bicubic) to this many pixels.
        video_px, num_frames: Clips are brought to this side and sampled to this many frames, the middle of each part.
        video_fit: "resize" squashes frames to the side; "centre_crop" cuts them, or puts black around smaller ones, as
            the original does in evaluation.
        pixel_mean, pixel_std: Subtracted from and dividing pixels in [0, 1], for every channel or for each.
        sample_rate, audio_seconds: Waveforms are resampled to this rate in Hz and cut or padded to this length.
        audio_pad: "zero" pads with silence; "repeat" repeats the sound a whole number of times first, as the original.
        audio_crop: Which part of a longer sound is kept.
        audio_int16: Round samples to 16 bits, as the original does.
        video_sampling: "random" draws a frame from each part, as the original does in evaluation too; here the draw
            depends on the file alone (its name, or its content when it has none), as that of `audio_crop`.
        video_decoder: Of `unival.data.video.load_video`.

    Raises:
        UserError: If an option is none of its choices, or a size is not positive.
    """

    tokenizer_class = "PreTrainedTokenizerFast"
    exact_resize = True
    """Resize pictures as Pillow does. In training it is off: torch's kernel takes a quarter of the time, and one value
    in 500 differs by 1/255."""

    max_tokens: int | None = None
    """Text positions of the model that this was loaded with: a row with a longer text is a bad row."""

    def __init__(
        self,
        tokenizer: Any = None,
        num_bins: int = 100,
        image_px: int = 96,
        video_px: int = 64,
        num_frames: int = 8,
        sample_rate: int = 16000,
        audio_seconds: float = 4.0,
        video_fit: Literal["resize", "centre_crop"] = "resize",
        pixel_mean: float | Sequence[float] = 0.5,
        pixel_std: float | Sequence[float] = 0.5,
        audio_pad: Literal["zero", "repeat"] = "zero",
        audio_crop: Literal["start", "centre", "random"] = "start",
        audio_int16: bool = False,
        video_sampling: Literal["middle", "random"] = "middle",
        video_decoder: Decoder = "av",
    ) -> None:
        super().__init__(tokenizer)
        self.num_bins = num_bins
        self.image_px = image_px
        self.video_px = video_px
        self.num_frames = num_frames
        self.sample_rate = sample_rate
        self.audio_seconds = audio_seconds
        self.video_fit = video_fit
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.audio_pad: Literal["zero", "repeat"] = audio_pad
        self.audio_crop: Literal["start", "centre", "random"] = audio_crop
        self.audio_int16 = audio_int16
        self.video_sampling: Literal["middle", "random"] = video_sampling
        self.video_decoder: Decoder = video_decoder
        check_media(vars(self))

    def image(self, source: Any, image_px: int | None = None, out: Tensor | None = None) -> Tensor:
        """Load an image as float32 (3, image_px, image_px), normalised; by default at the processor's size.

        Args:
            source: Of `load_image`.
            image_px: Replaces the processor's side.
            out: Write it here, and return this.
        """
        side = image_px or self.image_px
        if self.exact_resize:
            pixels = resize(np.asarray(load_image(source)), side)
        else:
            pixels = fast_resize(load_pixels(source), side)
        if self.pixel_mean == 0.5 and self.pixel_std == 0.5:
            return normalise(pixels.transpose(2, 0, 1), out)  # channels first before the cast: a third of the time
        normalised = self.normalise(pixels).permute(2, 0, 1)
        return normalised if out is None else out.copy_(normalised)

    def video(self, source: Any) -> Tensor:
        """Load a clip as float32 (3, num_frames, video_px, video_px), normalised; of an array as of a file."""
        rng = generator_of(source) if self.video_sampling == "random" else None
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 4 or source.shape[-1] != 3 or source.size == 0:
                what = f"expected a uint8 array (frames, height, width, 3), got {source.dtype} {source.shape}"
                raise UserError(what, fix="give one frame or more; multiply values between 0 and 1 by 255 and cast")
            frames = source[frame_indices(len(source), self.num_frames, self.video_sampling, rng)]
        else:
            frames = load_video(source, self.num_frames, self.video_sampling, rng, decoder=self.video_decoder)
        if self.video_fit == "centre_crop":
            pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)  # F 3 H W
            frames = center_crop(pixels, [self.video_px, self.video_px]).permute(0, 2, 3, 1).numpy()
        return self.normalise(np.stack([resize(frame, self.video_px) for frame in frames])).permute(3, 0, 1, 2)

    def normalise(self, pixels: np.ndarray) -> Tensor:
        """Map uint8 pixels (..., 3) to float32 by `pixel_mean` and `pixel_std`; the default is [-1, 1]."""
        if self.pixel_mean == 0.5 and self.pixel_std == 0.5:
            return normalise(pixels)
        scaled = torch.from_numpy(np.array(pixels)).float().div_(255.0)
        return scaled.sub_(torch.tensor(self.pixel_mean)).div_(torch.tensor(self.pixel_std))

    def audio(self, source: Any) -> Tensor:
        """Load a waveform as float32 (samples,) in [-1, 1] of the processor's length."""
        loaded = source if isinstance(source, np.ndarray) else load_audio(source, self.sample_rate)
        if loaded.dtype.kind != "f" or loaded.ndim != 1 or loaded.size == 0 or not np.isfinite(loaded).all():
            what = f"expected an array (samples,) of finite floats, got {loaded.dtype} {loaded.shape}"
            fix = f"take the mean of channels, divide int16 by 32768; the model hears {self.sample_rate} per second"
            raise UserError(what, fix=fix)
        waveform = np.asarray(loaded, dtype=np.float32)
        if self.audio_int16:
            waveform = (waveform.clip(-1.0, 1.0) * 32767.0).astype(np.int16).astype(np.float32) / 32767.0
        samples = int(self.sample_rate * self.audio_seconds)
        rng = generator_of(source) if self.audio_crop == "random" else None
        return torch.from_numpy(fit_length(waveform, samples, self.audio_pad, self.audio_crop, rng))

    def media(self, examples: Sequence[Example], image_px: int | None = None) -> Tensor:
        """Load the media of examples of one modality into one tensor; `image_px` replaces the size of pictures."""
        if examples[0].modality == "image":
            side = image_px or self.image_px
            pixels = empty((len(examples), 3, side, side))
            for example, out in zip(examples, pixels, strict=True):
                with decoding(example.where):
                    self.image(example.media, image_px, out)
            return pixels
        media = []
        for example in examples:
            with decoding(example.where):
                media.append(getattr(self, example.modality)(example.media))
        return torch.stack(media)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids with `<s>` and `</s>`; a space goes before each text, as in the original (specification 3.2).

        `<s>`, `<pad>`, `</s>` and `<unk>` in a text are letters. Mask, codes and bins are symbols wherever they stand.
        """
        backend, spaced = self.tokenizer.backend_tokenizer, [f" {text}" for text in texts]
        backend.encode_special_tokens = True  # here, as neither its files nor its copies keep it
        rows = [encoded.ids for encoded in backend.encode_batch(spaced)]
        return [self._with_masks(text) if MASK in text else row for text, row in zip(spaced, rows, strict=True)]

    def _with_masks(self, text: str) -> list[int]:
        """Encode what stands around masks, which are special tokens in a tokenizer that was loaded."""
        tokenizer = self.tokenizer
        *parts, last = text.split(MASK)
        ids = [tokenizer.bos_token_id]
        for part in parts:  # the spaces before a mask belong to it
            ids += [*tokenizer.backend_tokenizer.encode(part.rstrip(), add_special_tokens=False).ids]
            ids += [tokenizer.convert_tokens_to_ids(MASK)]
        ids += tokenizer.backend_tokenizer.encode(last, add_special_tokens=False).ids
        return [*ids, tokenizer.eos_token_id]

    def decode(self, ids: Any, skip_special_tokens: bool = True, **options: Any) -> Any:
        """Return the texts of generated ids (B, T), or the text of one row (T,), outer spaces stripped.

        Args:
            ids: A tensor, an array or lists.
            skip_special_tokens: Drop `<s>`, `</s>` and padding.
            options: Of the tokenizer's own method.
        """
        found = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **options)
        return found.strip() if isinstance(found, str) else [text.strip() for text in found]

    def batch_decode(self, ids: Any, **options: Any) -> list[str]:
        """Return the texts of rows of ids; see `decode`."""
        return [self.decode(row, **options) for row in ids]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # fewer options, and none that is passed over
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        return_tensors: Literal["pt"] = "pt",
        padding: bool | Literal["longest"] = True,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """Return the inputs of the model for prompts, each with at most one medium: what `generate` takes.

        Args:
            images, videos, audio: One medium of `image`, `video` or `audio`, or a list of them; one of the three.
            text: One prompt or a list of them, as many as media.
            return_tensors: Torch is what there is.
            padding: Prompts are padded on the right to the longest.
            sampling_rate: Of sounds that are arrays, which are then resampled; by default the processor's.

        Raises:
            UserError: If there is nothing, more than one kind of media, or another number of prompts than of media.
        """
        if return_tensors != "pt" or padding not in (True, "longest"):
            what = f"return_tensors={return_tensors!r} with padding={padding!r}"
            raise UserError(what, fix="this processor returns torch tensors, padded to the longest prompt")
        given = {"image": images, "video": videos, "audio": audio}
        media = {modality: as_list(value) for modality, value in given.items() if value is not None}
        if len(media) > 1 or (text is None and not media):
            what = f"the processor got {' and '.join(media) or 'nothing'}"
            raise UserError(what, fix="give a prompt (text=...) and one kind of media: images, videos or audio")
        if sampling_rate is not None and "audio" in media:
            rates = sampling_rate, self.sample_rate
            media["audio"] = [resample(x, *rates) if isinstance(x, np.ndarray) else x for x in media["audio"]]
        prompts = None if text is None else [text] if isinstance(text, str) else list(text)
        if prompts == []:
            raise UserError("the list of prompts is empty", fix="give one prompt for each medium")
        found: dict[str, Tensor] = {}
        if prompts is not None:
            found["input_ids"] = pad(self.encode(prompts), self.tokenizer.pad_token_id)
            found["attention_mask"] = found["input_ids"].ne(self.tokenizer.pad_token_id).long()
        for modality, values in media.items():
            if prompts is not None and len(prompts) != len(values):
                what = f"{len(prompts)} prompts and {len(values)} media of kind {modality}"
                raise UserError(what, fix="give as many prompts as media")
            found[MEDIA_INPUTS[modality]] = torch.stack([getattr(self, modality)(value) for value in values])
        return BatchFeature(found)

    def check_lengths(
        self, examples: Sequence[Example], prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> None:
        """Refuse texts for which the model has no positions.

        Raises:
            BadRow: For the first one, if the example knows where it stands.
        """
        for example, prompt, target in zip(examples, prompts, targets, strict=True):
            written = 0 if example.writes_codes else len(target) - 1  # `</s>` is not read
            if example.prompt_type != "none":
                written += len(prompt)
            longest = max(len(prompt), written)
            if self.max_tokens is not None and longest > self.max_tokens:
                with decoding(example.where):
                    what = f"a text has {longest} tokens, the model reads {self.max_tokens}"
                    raise UserError(what, fix="shorten it, or use a model with larger max_text_positions")

    def collate(
        self, examples: Sequence[Example], task_names: Sequence[str] = (), image_px: int | None = None
    ) -> Batch:
        """Pad examples of one modality to a batch; media with equal ids are loaded and encoded once.

        Raises:
            ValueError: If the examples mix modalities, or pictures and texts to write.
            UserError: If a picture to write has a code that the tokenizer does not.
        """
        modalities = {example.modality for example in examples}
        if len(modalities) != 1:
            raise ValueError(f"a batch holds one modality, got {sorted(modalities)}")
        if len({example.writes_codes for example in examples}) > 1:
            raise ValueError("a batch writes pictures or texts, not both")
        pad_id = self.tokenizer.pad_token_id
        prompts = self.encode([example.prompt for example in examples])
        targets = self.encode([example.target for example in examples])
        if examples[0].writes_codes:
            check_codes(examples, targets)
        self.check_lengths(examples, prompts, targets)
        prompt = pad(prompts, pad_id)
        target, prefix = decoder_sides(examples, prompts, targets, pad_id)
        inputs = {"input_ids": prompt, "attention_mask": prompt.ne(pad_id).long()}
        modality = modalities.pop()
        if modality != "text":
            keys = [example.media_id or example.uid for example in examples]
            first = dict(zip(reversed(keys), reversed(examples), strict=True))
            row = {key: index for index, key in enumerate(dict.fromkeys(keys))}
            inputs[MEDIA_INPUTS[modality]] = self.media([first[key] for key in row], image_px)
            if len(row) < len(examples):
                inputs["media_index"] = torch.tensor([row[key] for key in keys])
        return Batch(
            inputs, target, list(examples), list(task_names), prefix=prefix, writes_codes=examples[0].writes_codes
        )


def as_list(media: Any) -> list[Any]:
    """Return several media as a list, and one as a list of it."""
    return list(media) if isinstance(media, list | tuple) else [media]


def check_media(options: Mapping[str, Any]) -> None:
    """Refuse a value that is none of the choices, and a size that is no positive number."""
    for name in CHOICES.keys() & options.keys():
        if options[name] not in CHOICES[name]:
            raise UserError(f"{name}: {options[name]!r} is unknown", fix=f"one of {', '.join(CHOICES[name])}")
    for name, kind in SIZES.items():
        value = options.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
            fix = "give a whole number above 0" if kind is int else "give a number above 0"
            raise UserError(f"{name} is {value!r}", fix=fix)


def generator_of(source: Any) -> np.random.Generator:
    """Return a generator that depends on a medium alone."""
    if isinstance(source, np.ndarray):
        source = source.tobytes()
    return np.random.default_rng(zlib.crc32(source if isinstance(source, bytes) else str(source).encode()))


def normalise(pixels: np.ndarray, out: Tensor | None = None) -> Tensor:
    """Map uint8 pixels to float32 in [-1, 1] (mean 0.5, std 0.5 per channel), written to `out` if given."""
    source = torch.from_numpy(pixels if pixels.flags.writeable else np.array(pixels))
    out = torch.empty(pixels.shape) if out is None else out
    return out.copy_(source).div_(127.5).sub_(1.0)


def resize(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 pixels to (side, side, 3), bicubic; no copy when the size is right."""
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def fast_resize(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resize as `resize` with torch's vectorised kernel; values differ by 1 at most."""
    if pixels.shape[:2] == (side, side):
        return pixels
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, (side, side), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def check_codes(examples: Sequence[Example], targets: Sequence[Sequence[int]]) -> None:
    """Require that every code of a picture to write is one token.

    Raises:
        UserError: It is not: the codec has more codes than the model.
    """
    for example, target in zip(examples, targets, strict=True):
        num_codes = example.target.count("<code_")
        if num_codes and len(target) != num_codes + 2:  # between <s> and </s>
            largest = max(int(code.partition(">")[0]) for code in example.target.split("<code_")[1:])
            raise UserError(
                f"a picture has a code that the model has not, its largest is {largest}",
                where=example.where or f"record {example.uid}",
                fix="use the codec that the model was made for, or a model with more codes (tokenizer.num_codes)",
            )
