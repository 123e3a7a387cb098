"""`unival codec`: pictures to codes, codes to pictures, and a small codec of one's own."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unival.errors import UserError
from unival.options import DeviceOption, JsonOption

app = typer.Typer(help="Pictures as codes, for text-to-image.", no_args_is_help=True)
CodecOption = Annotated[str, typer.Option("--codec", help="VQGAN checkpoint, or a folder of `codec train`.")]


@app.command()
def encode(
    source: Annotated[str, typer.Argument(help="Manifest of pictures with captions, or {a source as in a config}.")],
    out: Annotated[Path, typer.Argument(help="Manifest to write: the text fields and `codes`.")],
    codec: CodecOption,
    side: Annotated[int, typer.Option("--side", min=8, help="Pixels that pictures are squashed to.")] = 256,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Write a manifest for text-to-image.

    Example: unival codec encode data/coco/train.jsonl data/coco_codes/train.jsonl --codec vqgan/model.ckpt

    Example: unival codec encode "{world: test, content: detailed_caption}" codes.jsonl --codec codecs/mine --side 64
    """
    from unival.codec.encode import encode_pictures

    summary = encode_pictures(source, out, codec, side, device)
    print(json.dumps(summary) if as_json else f"{summary['rows']} pictures of {summary['codes']} codes: {out}")


@app.command()
def decode(
    predictions: Annotated[Path, typer.Argument(help="Predictions of text-to-image, or a manifest with `codes`.")],
    out: Annotated[Path, typer.Argument(help="Folder for one PNG file per row.")],
    codec: CodecOption,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw what a model has written.

    Example: unival codec decode runs/eval/predictions-pictures.jsonl pictures --codec vqgan/model.ckpt
    """
    from unival.codec.base import load_codec, to_grid, to_picture, write_picture
    from unival.device import find_device

    network, written = load_codec(codec, find_device(device)), []
    for number, row in enumerate(read_rows(predictions), start=1):
        codes = row.get("prediction", row.get("codes"))
        if not isinstance(codes, list) or not all(type(code) is int for code in codes):
            fix = "give it `prediction` or `codes`, a list of numbers"
            raise UserError("a row has no codes", where=f"{predictions}:{number}", fix=fix)
        pixels = network.decode(to_grid(codes, network.num_codes))[0]
        path = write_picture(out, number, str(row.get("uid", "")), to_picture(pixels))
        written.append(str(path))
    print(json.dumps({"pictures": written}) if as_json else f"{len(written)} pictures: {out}")


@app.command()
def score(
    pictures: Annotated[Path, typer.Argument(help="Folder of generated pictures, as `codec decode` writes them.")],
    inception: Annotated[Path | None, typer.Option("--inception", help="Weights, for FID and Inception Score.")] = None,
    against: Annotated[Path | None, typer.Option("--against", help="Real pictures, or .npz; for FID.")] = None,
    clip: Annotated[Path | None, typer.Option("--clip", help="Folder of transformers, or file of open_clip.")] = None,
    clip_name: Annotated[str | None, typer.Option("--clip-name", help="Architecture of that file.")] = None,
    captions: Annotated[Path | None, typer.Option("--captions", help="The file that was decoded, for CLIP.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Print FID, Inception Score and CLIP similarity, with networks from files that you have.

    Example: unival codec score pictures --inception weights.pth --against coco.npz --clip clip/ --captions rows.jsonl
    """
    if inception is None and clip is None:
        raise UserError("nothing to score with", fix="give --inception FILE, --clip MODEL or both")
    if against is not None and inception is None:
        raise UserError("--against needs --inception", fix="give the weights of the network that compares")
    if clip is not None and captions is None:
        raise UserError("--clip needs --captions", fix="give the file that `codec decode` read")
    from unival.codec.score import score_pictures

    rows = read_rows(captions) if captions is not None else []
    report = score_pictures(pictures, inception, against, clip, clip_name, rows, device)
    print(json.dumps(report) if as_json else "\n".join(f"{name}: {value:.6g}" for name, value in report.items()))


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Folder for the codec.")],
    steps: Annotated[int, typer.Option("--steps", min=1, help="Updates of 8 pictures each.")] = 1000,
    patch: Annotated[Literal["4", "8"], typer.Option("--patch", help="Pixels along the side of a code.")] = "4",
    seed: Annotated[int, typer.Option("--seed")] = 1,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a small codec on the embedded world (64 pixels as 256 or 64 codes); prints its error on held-out pictures.

    Example: unival codec train codecs/mine --steps 1000
    """
    from unival.codec.train import SIZES, train_codec

    report = train_codec(out, steps=steps, seed=seed, config=SIZES[int(patch)], device=device)
    print(json.dumps(report) if as_json else "\n".join(f"{name}: {value}" for name, value in report.items()))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file.

    Raises:
        UserError: If it is missing, or a line is no object.
    """
    fix = "give a file of JSON lines, as `codec encode` and `unival evaluate` write it"
    if not path.is_file():
        raise UserError("no such file", where=str(path), fix=fix)
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError("a line is no JSON object", where=f"{path}:{number}", fix=fix)
            rows.append(row)
    return rows
