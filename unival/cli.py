"""The command line: `unival {train,plan,evaluate,predict,convert,demo,tasks}`. Imports torch only inside a command."""

import json
import signal
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unival.codec.command import app as codec_app
from unival.data.command import app as data_app
from unival.errors import UserError, run_cli
from unival.options import DeviceOption, JsonOption
from unival.tasks import PREDICT_TASKS, check_predicted
from unival.training.stop import ignored, interruptible

app = typer.Typer(
    name="unival",
    help="Unified image, video, audio and text model: train, evaluate, predict.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from unival import __version__

        print(f"unival {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Take the options that stand before a command."""


app.add_typer(codec_app, name="codec")
app.add_typer(data_app, name="data")
ModelOption = Annotated[str, typer.Option("--model", help="Model folder, or the name of a built-in model.")]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file under configs/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value ...")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run folder first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train as a configuration says; the same command continues an interrupted run.

    Example: unival train configs/demo/audio.yaml seed=3 out=runs/audio
    """
    from unival.config import load_config
    from unival.schema import RunConfig

    with ignored(signal.SIGUSR1), interruptible():  # imports take seconds, in which there is nothing to save
        resolved = load_config(config, overrides or [], RunConfig)
        from unival.memory import keep_freed_memory
        from unival.train import train as run

        keep_freed_memory()
        folder = run(resolved, fresh)
    report = folder.parent / "evaluation.json"
    results = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    if as_json:
        print(json.dumps({"model": str(folder), "evaluations": results}))
    else:
        print(f"model: {folder}")
        print_results(results)


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="YAML file under configs/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value ...")] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="Name of a data sheet: h100, h200, a100, mi250x, ...")] = "h100",
    world: Annotated[int, typer.Option("--world", min=1, help="Number of GPUs.")] = 1,
    efficiency: Annotated[float, typer.Option("--efficiency", min=0.01, max=1.0, help="Share of the peak.")] = 0.35,
    sizes: Annotated[
        Path | None, typer.Option("--sizes", help="File of configs/model, when the weights of `init` are not here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run takes before it is started: parameters, memory, arithmetic, time. Nothing is loaded or written.

    Example: unival plan configs/pretrain/stage1.yaml --gpu a100 --world 8 accumulation=16
    """
    from unival.config import load_config
    from unival.schema import RunConfig

    resolved = load_config(config, overrides or [], RunConfig)
    from unival.planning.cost import report
    from unival.planning.plan import with_sizes
    from unival.planning.table import print_plan

    try:
        found = report(resolved if sizes is None else with_sizes(resolved, sizes), gpu, world, efficiency)
    except UserError as error:
        if error.where == "init":
            fix = "make or fetch it, or give its sizes: --sizes configs/model/base.yaml"
            raise UserError(error.what, error.where, fix) from None
        raise
    print(json.dumps(found)) if as_json else print_plan(found)


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(help="YAML file with `evaluations`.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value ...")] = None,
    model: ModelOption = "unival-tiny",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results and predictions.")] = Path(
        "runs/evaluation"
    ),
    only: Annotated[list[str] | None, typer.Option("--only", help="Names of the evaluations to run.")] = None,
    device: DeviceOption = "auto",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option("--precision", help="Of the computation.")] = "fp32",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model; predictions and per-sample scores are kept. Killed, the same command continues.

    Example: unival evaluate configs/eval/tiny.yaml --model unival-tiny --only vqa

    Several processes: torchrun --nproc-per-node 2 -m unival.cli evaluate configs/eval/tiny.yaml
    """
    from unival.config import load_config
    from unival.schema import EvaluationSuite

    suite = load_config(config, overrides or [], EvaluationSuite)
    from unival.checkpoint import load_model
    from unival.evaluate import evaluate_all, find_evaluation, precise
    from unival.memory import keep_freed_memory
    from unival.schema import ParallelConfig
    from unival.training.check import check_out
    from unival.training.distributed import join

    keep_freed_memory()
    chosen = find_evaluation(suite.evaluations, only or [])
    check_out(str(out), "--out")
    network, processor = load_model(model)
    with join(ParallelConfig(), device) as world, precise(network, world.device, precision):
        results = evaluate_all(network, processor, chosen, out, world, model)
    if not world.is_main:
        return
    if as_json:
        print(json.dumps(results))
    else:
        print_results(results)


@app.command()
def predict(
    task: Annotated[str, typer.Argument(help=f"One of: {', '.join(PREDICT_TASKS)}; or a file of your own.")],
    files: Annotated[list[str], typer.Argument(help="Media files or glob patterns.")],
    text: Annotated[str | None, typer.Option("--text", help="Question, expression or statement.")] = None,
    model: ModelOption = "unival-tiny",
    beams: Annotated[int, typer.Option("--beams", min=1, help="Width of the beam search; 1 is greedy.")] = 1,
    candidates: Annotated[
        Path | None, typer.Option("--candidates", help="File with the only answers allowed, one per line.")
    ] = None,
    draw: Annotated[Path | None, typer.Option("--draw", help="Grounding: write the picture with its box here.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Describe, answer, find.

    Example: unival predict vqa picture.png --text "what is left of the cat?"
    """
    check_predicted(task)
    if draw is not None and task != "grounding":
        raise UserError(f"{task} has no boxes to draw", where="--draw", fix="leave it out; grounding draws its box")
    from unival.data.media import files_of

    paths = files_of(files)
    from unival.data.answers import read_answers
    from unival.memory import keep_freed_memory
    from unival.predict import draw_box, drawing_paths, pipeline

    keep_freed_memory()
    allowed = None if candidates is None else read_answers(candidates)
    run = pipeline(task, model=model, num_beams=beams, candidates=allowed, device=device)
    drawings = drawing_paths(paths, draw) if run.draws_boxes else []
    results = run(paths, text=text)
    failure = None
    for result, drawing in zip(results, drawings, strict=False):  # no drawings of another task
        if result["prediction"] is not None:
            try:
                draw_box(result["file"], result["prediction"], text or "", drawing)
                result["drawing"] = str(drawing)
            except UserError as error:
                failure = failure or error  # the predictions are printed all the same
    print_predictions(results, as_json)
    if failure is not None:
        raise failure


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Original .pt file; with --to fairseq also a model.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder (or .pt file) to create.")],
    to: Annotated[Literal["transformers", "fairseq"], typer.Option("--to", help="What to write.")] = "transformers",
    ema: Annotated[bool, typer.Option("--ema", help="Take the averaged weights.")] = False,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="Folder with encoder.json, vocab.bpe and dict.txt, or bart-base's."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint of the original into a model folder, or back; the file is read without running any of it.

    Example: unival convert checkpoint_best.pt models/caption --tokenizer BPE
    """
    from unival.convert import convert as run

    summary = run(source, destination, to, ema, None if tokenizer is None else str(tokenizer))
    if as_json:
        print(json.dumps(summary))
        return
    media = ", ".join(summary["media"]) or "text only"
    print(f"wrote {summary['written']}: {summary['tensors']} tensors, {summary['dtype']}, {media}")
    for note in summary["notes"]:
        print(f"note: {note}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A.jsonl", help="Predictions that `unival evaluate` wrote.")],
    second: Annotated[Path, typer.Argument(metavar="B.jsonl", help="Those of another model on the same rows.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two models sample by sample: mean differences with 95 % intervals, and how many samples gain or lose.

    Example: unival compare runs/a/predictions-vqa.jsonl runs/b/predictions-vqa.jsonl
    """
    from unival.metrics.compare import compare_predictions

    result = compare_predictions(first, second)
    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "A", "B", "A - B", "95 % interval", "better", "worse", "equal")
    for name, row in result["metrics"].items():
        means = (f"{row[key]:.4f}" for key in ("first", "second", "difference"))
        counts = (str(row[key]) for key in ("better", "worse", "equal"))
        table.add_row(name, *means, f"{row['low']:.4f} to {row['high']:.4f}", *counts)
    Console().print(table)
    print(f"{result['samples']} samples, {result['same_predictions']} with the same prediction")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report and all runs.")] = Path("runs/demo"),
    configs: Annotated[Path, typer.Option("--configs", help="Folder of the demo's YAML files.")] = Path("configs/demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole path in minutes and write OUT/index.html; interrupted, the same command continues."""
    from unival.demo import run_demo

    with interruptible():
        summary = run_demo(out, configs, fresh)
    print(json.dumps(summary) if as_json else f"report: {summary['report']}")


@app.command()
def draw(
    captions: Annotated[list[str], typer.Argument(help="What the pictures show.")],
    model: Annotated[
        str, typer.Option("--model", help="Model folder that writes codes, or a built-in name.")
    ] = "unival-tiny-pictures",
    codec: Annotated[str | None, typer.Option("--codec", help="VQGAN checkpoint or folder of `codec train`.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for one PNG file per caption.")] = Path("pictures"),
    samples: Annotated[int, typer.Option("--samples", min=1, help="Drawings, of which one is kept.")] = 1,
    judge: Annotated[str | None, typer.Option("--judge", help="Model that describes pictures and chooses one.")] = None,
    topk: Annotated[int, typer.Option("--topk", min=1, help="Draw among so many codes.")] = 256,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw a picture from a caption.

    Example: unival draw "a cat on a blue background" --samples 16 --judge unival-tiny
    """
    from unival.codec.base import write_picture
    from unival.draw import draw as draw_pictures
    from unival.memory import keep_freed_memory
    from unival.training.check import check_out

    keep_freed_memory()
    check_out(str(out), "--out")
    pictures = draw_pictures(captions, model, codec, samples, topk, seed=seed, judge=judge, device=device)
    pairs = zip(captions, pictures, strict=True)
    rows = [
        {"caption": caption, "picture": str(write_picture(out, number, caption, picture))}
        for number, (caption, picture) in enumerate(pairs, start=1)
    ]
    print(json.dumps(rows) if as_json else "\n".join(f"{row['picture']}: {row['caption']}" for row in rows))


@app.command()
def tasks(as_json: JsonOption = False) -> None:
    """List tasks that `predict` knows."""
    print(json.dumps(list(PREDICT_TASKS)) if as_json else "\n".join(PREDICT_TASKS))


def print_predictions(results: list[dict[str, Any]], as_json: bool) -> None:
    """Print what `predict` found: a line per file, and where its drawing is."""
    if as_json:
        print(json.dumps(results))
        return
    for result in results:
        note = f"  -> {result['drawing']}" if "drawing" in result else ""
        shown = _shown(result["prediction"])
        print(f"{result['file']}: {shown}{note}" if len(results) > 1 else f"{shown}{note}")


def _shown(answer: Any) -> str:
    """Return a text as it is, a box with a digit behind the point, and what another task predicts as JSON."""
    if isinstance(answer, str):
        return answer
    if answer is None:
        return "no box"
    is_box = isinstance(answer, list | tuple) and len(answer) == 4 and all(isinstance(x, int | float) for x in answer)
    return " ".join(f"{x:.1f}" for x in answer) if is_box else json.dumps(answer)


def print_results(results: dict[str, Any]) -> None:
    """Print evaluation results as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("evaluation", "metric", "mean", "95 % interval", "samples")
    for name, result in results.items():
        for metric, value in result["metrics"].items():
            interval = f"{value['low']:.3f} to {value['high']:.3f}"
            table.add_row(name, metric, f"{value['mean']:.3f}", interval, str(result["samples"]))
        for metric, value in result.get("corpus", {}).items():
            table.add_row(name, metric, f"{value:.3f}", "", str(result["samples"]))
        for kind, row in result.get("question_types", {}).items():
            table.add_row(
                name,
                f"accuracy, {kind}",
                f"{row['accuracy']:.3f}",
                f"guess {row['most_frequent_answer']:.3f}",
                str(row["samples"]),
            )
    if results:
        Console().print(table)


def main() -> None:
    """Run the command line: wrong input ends in one to three lines and exit code 2."""
    run_cli(app)


if __name__ == "__main__":
    main()
