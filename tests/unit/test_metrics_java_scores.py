"""METEOR and SPICE: errors without Java, and the protocols with programs that stand in for Java."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from unival.errors import UserError
from unival.metrics import java_scores
from unival.metrics.java_scores import SPICE_MODELS, meteor, spice

# Speaks METEOR's protocol: the "score" of a caption is its share of words that its first reference has.
FAKE_METEOR = """
import sys
for line in sys.stdin:
    kind, *parts = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        *references, text = parts
        words = text.split()
        print(sum(word in references[0].split() for word in words), len(words), flush=True)
    else:
        shares = [tuple(map(int, part.split())) for part in parts]
        for hits, total in shares:
            print(hits / total, flush=True)
        print(sum(hits for hits, _ in shares) / sum(total for _, total in shares), flush=True)
"""
# Writes what SPICE writes; the caption "broken" has no number.
FAKE_SPICE = """
import json, sys
source, target = sys.argv[4], sys.argv[8]
assert sys.argv[5] == "-cache"
entries = json.load(open(source))
scores = [float("nan") if e["test"] == "broken" else 0.5 * (e["test"] in e["refs"]) for e in entries]
rows = [{"image_id": e["image_id"], "scores": {"All": {"f": s}}} for e, s in zip(entries, scores)]
json.dump(rows[::-1], open(target, "w"))
"""
FAILING = "import sys\nprint('Exception in thread main', file=sys.stderr)\nsys.exit(1)\n"


def fake_java(folder: Path, program: str) -> str:
    """Write an executable that ignores Java's options and runs a Python program."""
    path = folder / "java"
    python = shutil.which("python3")
    path.write_text(f"#!{python}\n{program}", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def jar(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    for name in ("program.jar", *(f"lib/{name}" for name in SPICE_MODELS)):
        (tmp_path / name).touch()
    return tmp_path / "program.jar"


def test_meteor_sends_tokens_and_reads_samples_then_the_corpus(tmp_path: Path, jar: Path) -> None:
    java = fake_java(tmp_path, FAKE_METEOR)
    score = meteor(["A dog ||| runs.", "a cat"], [["a dog sits", "x"], ["A cat!"]], jar=jar, java=java)
    assert score.per_sample.tolist() == pytest.approx([2 / 6, 1.0])  # the bars are three tokens, no separator
    assert score.value == pytest.approx(4 / 8)


def test_spice_reads_scores_by_number_and_counts_missing_ones_as_0(tmp_path: Path, jar: Path) -> None:
    java = fake_java(tmp_path, FAKE_SPICE)
    score = spice(["A dog.", "broken", "a cat"], [["a dog"], ["broken"], ["a bird"]], jar=jar, java=java)
    assert score.per_sample.tolist() == [0.5, 0.0, 0.0]


@pytest.mark.parametrize(("metric", "name"), [(meteor, "METEOR stopped"), (spice, "SPICE failed")])
def test_a_failing_program_is_reported_with_its_last_line(metric, name: str, tmp_path: Path, jar: Path) -> None:
    with pytest.raises(UserError, match=f"{name}: Exception in thread main"):
        metric(["a"], [["a"]], jar=jar, java=fake_java(tmp_path, FAILING))


@pytest.mark.parametrize("metric", [meteor, spice])
def test_without_java_or_jar_the_fix_is_named(metric, jar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"need Java.*apt-get install default-jre-headless"):
        metric(["a"], [["a"]], jar=jar, java="no-such-java")
    with pytest.raises(UserError, match="no such file"):
        metric(["a"], [["a"]], jar=jar.parent / "other.jar")
    monkeypatch.setattr(java_scores.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pycocoevalcap is not installed.*unival\[coco-java\]"):
        metric(["a"], [["a"]])


def test_spice_never_downloads_its_models(jar: Path) -> None:
    (jar.parent / "lib" / SPICE_MODELS[1]).unlink()
    with pytest.raises(UserError, match=r"SPICE lacks stanford-corenlp-3.6.0-models.jar.*get_stanford_models"):
        spice(["a"], [["a"]], jar=jar)


@pytest.mark.slow
def test_meteor_equals_the_stored_output_of_the_official_evaluation() -> None:
    jar = os.environ.get("UNIVAL_METEOR_JAR")
    if jar is None or shutil.which("java") is None:
        pytest.skip("needs Java and UNIVAL_METEOR_JAR, the path of meteor-1.5.jar")
    path = Path(__file__).parents[1] / "parity" / "data" / "metrics_meteor.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    score = meteor(stored["predictions"], stored["references"], jar=jar)
    assert score.value == pytest.approx(stored["value"], abs=1e-12)
    assert score.per_sample.tolist() == pytest.approx(stored["per_sample"], abs=1e-12)
