"""METEOR and SPICE of captions, through their authors' Java programs, which `pip install "unival[coco-java]"` brings.

Captions are tokenised first (`ptb_tokenize`), as the COCO evaluation does. METEOR 1.5: Denkowski and Lavie 2014; SPICE:
Anderson et al. 2016. Nothing is downloaded: SPICE needs two files of Stanford CoreNLP beside its own, see `spice`.
"""

import contextlib
import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from unival.errors import UserError
from unival.metrics.ptb import ptb_tokenize
from unival.metrics.score import Score, check_references, mean_score

INSTALL = 'pip install "unival[coco-java]", and a Java runtime such as `apt-get install default-jre-headless`'
METEOR_JAR = "meteor/meteor-1.5.jar"
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def meteor(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    jar: str | Path | None = None,
    java: str = "java",
) -> Score:
    """Score captions by METEOR 1.5, English, from 0 to 1.

    Args:
        predictions: One caption per sample.
        references: One non-empty sequence of captions per sample.
        jar: `meteor-1.5.jar` (its folder `data` beside it); by default that of the package pycocoevalcap.
        java: The Java program.

    Returns:
        `value` is the corpus score, which pools statistics and is not the mean of `per_sample`.

    Raises:
        UserError: Java or the jar is missing, the program fails, or the lengths differ.
    """
    with contextlib.closing(Meteor(jar, java)) as program:
        return program.score(predictions, references)


class Meteor:
    """METEOR as a program that is started at the first question and then asked again and again, such as by a reward.

    Args:
        jar, java: As `meteor`.

    Raises:
        UserError: Java or the jar is missing.
    """

    def __init__(self, jar: str | Path | None = None, java: str = "java") -> None:
        self._jar = _jar(jar, METEOR_JAR)
        self._command = [_program(java), "-Xmx2G", "-jar", str(self._jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        self._run: subprocess.Popen[str] | None = None
        self._errors: IO[bytes] | None = None

    def score(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
        """Score captions as `meteor`."""
        check_references(predictions, references)
        if not predictions:
            return mean_score(())
        hypotheses, tokenized = _tokenize(predictions, references)
        if self._run is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the program runs
            self._run = subprocess.Popen(
                self._command, cwd=self._jar.parent, stdin=-1, stdout=-1, stderr=self._errors, encoding="utf-8"
            )
        try:
            asked = [
                self._ask(f"SCORE ||| {' ||| '.join(others)} ||| {text}")
                for text, others in zip(hypotheses, tokenized, strict=True)
            ]
            scores = [float(self._ask(f"EVAL ||| {' ||| '.join(asked)}"))]
            scores += [float(self._ask(None)) for _ in asked]
        except ValueError as error:
            self.close()  # what it says next would be the answer to another question
            if isinstance(error, UserError):
                raise
            raise UserError(f"METEOR wrote no number: {error}", where=str(self._jar)) from None
        return Score(scores[-1], np.array(scores[:-1], dtype=np.float64))

    def close(self) -> None:
        """End the program."""
        if self._run is not None and self._errors is not None:
            self._run.kill()
            self._run.__exit__(None, None, None)
            self._errors.close()
            self._run = self._errors = None

    def _ask(self, line: str | None) -> str:
        """Send a line, if any, and return the next line of the answer."""
        run, errors = self._run, self._errors
        assert run is not None
        assert run.stdin is not None
        assert run.stdout is not None
        assert errors is not None
        answer = ""
        try:
            if line is not None:
                run.stdin.write(f"{line}\n")
                run.stdin.flush()
            answer = run.stdout.readline().strip()
        except BrokenPipeError:
            pass
        if not answer:
            run.wait()
            errors.seek(0)
            raise UserError(f"METEOR stopped: {_last_line(errors.read())}", fix=INSTALL)
        return answer


def spice(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    jar: str | Path | None = None,
    java: str = "java",
    timeout_s: float = 7200.0,
) -> Score:
    """Score captions by SPICE (F-score over scene-graph tuples), from 0 to 1.

    Args:
        predictions: One caption per sample.
        references: One non-empty sequence of captions per sample.
        jar: `spice-1.0.jar` with its folder `lib`; by default that of the package pycocoevalcap. In `lib` must be
            `stanford-corenlp-3.6.0.jar` and its models, which `python -m pycocoevalcap.spice.get_stanford_models`
            fetches (400 MB) when you call it.
        java: The Java program; SPICE is known to work with Java 8 to 11.
        timeout_s: When to give up.

    Returns:
        The mean and the samples. A caption whose score the program cannot compute counts as 0.

    Raises:
        UserError: Java or a jar is missing, the program fails or takes too long, or the lengths differ.
    """
    check_references(predictions, references)
    jar, program = _spice_jar(jar), _program(java)
    hypotheses, tokenized = _tokenize(predictions, references)
    with tempfile.TemporaryDirectory(prefix="spice-") as folder:
        source, target = Path(folder, "captions.json"), Path(folder, "scores.json")
        pairs = enumerate(zip(hypotheses, tokenized, strict=True))
        entries = [{"image_id": number, "test": text, "refs": others} for number, (text, others) in pairs]
        source.write_text(json.dumps(entries), encoding="utf-8")
        cache = Path(folder, "cache")
        cache.mkdir()
        command = [program, "-Xmx8G", "-jar", str(jar), str(source), "-cache", str(cache), "-out", str(target)]
        try:
            run = subprocess.run(
                [*command, "-subset", "-silent"], cwd=jar.parent, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"SPICE did not end within {timeout_s:g} s", where=str(jar)) from None
        if run.returncode or not target.is_file():
            raise UserError(f"SPICE failed: {_last_line(run.stderr)}", where=str(jar), fix="try Java 8 or 11")
        return mean_score(_f_scores(json.loads(target.read_text(encoding="utf-8")), len(entries)))


def check_installed(name: Literal["meteor", "spice"]) -> None:
    """Check that a metric can be computed here.

    Raises:
        UserError: Java or a jar is missing; says what to install.
    """
    if name == "meteor":
        _jar(None, METEOR_JAR)
    else:
        _spice_jar(None)
    _program("java")


def _spice_jar(jar: str | Path | None) -> Path:
    path = _jar(jar, "spice/spice-1.0.jar")
    missing = [name for name in SPICE_MODELS if not (path.parent / "lib" / name).is_file()]
    if missing:
        fix = "fetch them once with `python -m pycocoevalcap.spice.get_stanford_models`"
        raise UserError(f"SPICE lacks {' and '.join(missing)}", where=str(path.parent / "lib"), fix=fix)
    return path


def _f_scores(results: list[dict[str, Any]], count: int) -> list[float]:
    scores = [0.0] * count
    for entry in results:
        value = entry["scores"]["All"]["f"]
        scores[entry["image_id"]] = float(value) if isinstance(value, int | float) and np.isfinite(value) else 0.0
    return scores


def _tokenize(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Tokenise; the separator of METEOR's protocol cannot occur afterwards."""
    flat = iter(_clean(ptb_tokenize([caption for captions in references for caption in captions])))
    return _clean(ptb_tokenize(predictions)), [[next(flat) for _ in captions] for captions in references]


def _clean(captions: Sequence[str]) -> list[str]:
    return [" ".join(caption.replace("|||", " ").split()) for caption in captions]


def _last_line(text: bytes) -> str:
    lines = [line for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "without a message"


def _program(java: str) -> str:
    found = shutil.which(java)
    if found is None:
        raise UserError("METEOR and SPICE need Java, which is not installed", fix=INSTALL)
    return found


def _jar(jar: str | Path | None, inside: str) -> Path:
    if jar is None:
        package = importlib.util.find_spec("pycocoevalcap")
        if package is None or not package.submodule_search_locations:
            raise UserError(f"no {Path(inside).name}: pycocoevalcap is not installed", fix=INSTALL)
        jar = Path(package.submodule_search_locations[0], inside)
    path = Path(jar).absolute()
    if not path.is_file():
        raise UserError(f"no such file: {jar}", fix=INSTALL)
    return path
