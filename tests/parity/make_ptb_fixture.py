"""Rebuild data/ptb_java.json.gz: what Stanford's tokenizer in Java makes of generated captions.

    python tests/parity/make_ptb_fixture.py --jar .../pycocoevalcap/tokenizer/stanford-corenlp-3.4.1.jar

Needs Java and the jar that `pip install pycocoevalcap==1.2` brings. The captions are of three kinds: `plain` (sentences
as people write them), `simple` (words, commas, dots, hyphens and apostrophes in any order) and `nasty` (all signs). One
run tokenises all of them, because a caption's first word can change the one before it.
"""

# ruff: noqa: E501, RUF001, SIM905 - lists of words, with the odd quotes that captions have
import argparse
import gzip
import json
import random
import subprocess
import tempfile
from pathlib import Path

NOUNS = """
    man woman dog cat child street sign bench boat pizza table horse frisbee umbrella train bus stop light laptop t-shirt
    hot-dog skateboard mother-in-law X-ray TV TVs DVD's giraffe zebra café Zoë's children's boys' teddy-bear fire-hydrant
    motorcycle o'clock ma'am will-o'-the-wisp jack-o'-lantern ice-cream merry-go-round bird's beach surfer tennis racket
    ball plate fork knife spoon bowl banana apple sandwich orange broccoli carrot cake chair couch bed toilet mouse remote
    keyboard phone microwave oven toaster sink refrigerator book clock vase scissors toothbrush
""".split()
ADJECTIVES = """
    red blue large small two-story black-and-white three-year-old old wooden 5 12 2nd 1990's 20-foot half-eaten well-lit
    brown-haired half green multi-colored stainless-steel 10-speed
""".split()
VERBS = (
    "is sitting on|sits near|isn't riding|is holding|can't see|walks by|stands in front of|didn't eat|is looking at|that's "
    "next to|he's carrying|they're watching|cannot reach|is gonna ride|wanna ride|won't leave|flies over|parked next to|"
    "are playing with|who's riding"
).split("|")
PLACES = (
    "in the U.S.|at 5 p.m.|at 10:30 am|on Main St.|in Washington D.C.|near the ocean|on a sunny day|in a black/white photo|"
    "in the 1950s|w/ a friend|for $5.00|10% off|in St. Louis|by the lake|while it's raining|and/or a river|in the middle of "
    "a field, under a tree|(seen from above)|under a \"STOP\" sign|labeled 'EXIT'|near Mr. Smith's house|on a plate; it "
    "looks good|#1 fan|at the corner of 5th & Main|on Route 66|in New York City|next to the John Hancock Bldg.|"
    "made by Apple Inc."
).split("|")
STARTS = "A|The|Two|Some|An|Several|There is a|This is a|a|the|it's a|Here's a|One|People and a".split("|")
ENDS = (*["."] * 6, *[""] * 4, "!", " .", "..", "...", "?", ".  ", " ")
WORDS = """
    A a I man dog Dog DOG cat's isn't don't won't cannot can't 'tis it's IT'S e.g i.e U.S u.s p.m a.m Mr Mrs Dr St Ave Jan
    Feb Inc No no vs etc Ph.D the The An in In It sign ok ol rock n roll y'all o'clock O'Brien d'ye l'eau ma'am t-shirt
    x-ray mother-in-law re co Co ex pre non anti pro em til twas gonna wanna gotta s t d ll ve m they he she we What You b
    B c C x X café Zoë naïve boys dogs goin doin rockin C'mon c'est cap'n Cap'n Dunkin somethin wo ca sha ai ain't shan't
    y'know who'd've I'd've should've mustn't've hi-fi sci-fi u-turn U-turn T A.B J.R.R a.b.c.d
""".split()
SEPARATORS = (*[" "] * 12, *", |. |-|'| - |'s |... |,|.| '|' |--| -|- |.,|,.|''|..|'-|-'|.-|-.|. '|'.".split("|"))
ODD_WORDS = """
    5 12 3.5 1,000 1/2 1-2 90s 1990s 2nd 5'10 #1 #dog @bob a@b.com www.a.com http://a.b/c a/b w/ and/or $5 £5 10% 20° ½ R&B
    AT&T C++ &amp; <b> </b> <person> :) ;-) :D ^_^ … – — “ ” ‘ ’ « » don’t it’s é ñ 日本 😀 ★ → ♥ x² ™ file.jpg 3:15pm 10am
    24/7 (a) [b] {c} 555-1234 T.V. 1.5-inch 3D 4x4 MP3
""".split()
SIGNS = (*SEPARATORS, *'"()[]{}/\\*_&#@%$^~`+=|;:!?<>“”’‘', "  ", "\t", "?!", "!!", "**", "__", "``")


def plain(draw: random.Random) -> str:
    """Return a sentence or two."""
    first = f"{draw.choice(ADJECTIVES)} " if draw.random() < 0.6 else ""
    second = f"{draw.choice(ADJECTIVES)} " if draw.random() < 0.4 else ""
    text = f"{draw.choice(STARTS)} {first}{draw.choice(NOUNS)} {draw.choice(VERBS)} "
    text += f"{draw.choice(('a', 'the', 'his', 'an'))} {second}{draw.choice(NOUNS)}"
    if draw.random() < 0.5:
        text += (", " if draw.random() < 0.2 else " ") + draw.choice(PLACES)
    if draw.random() < 0.1:
        text += f". {plain(draw)}"
    return text + draw.choice(ENDS) if draw.random() < 0.95 else text.lower()


def simple(draw: random.Random) -> str:
    """Return words and the signs of ordinary writing in any order."""
    return "".join(draw.choice(WORDS) + draw.choice(SEPARATORS) for _ in range(draw.randint(1, 8)))


def nasty(draw: random.Random) -> str:
    """Return words and any signs in any order."""
    words = WORDS + ODD_WORDS
    parts = (
        draw.choice(words) + (draw.choice(SIGNS) if draw.random() < 0.5 else " ") for _ in range(draw.randint(1, 9))
    )
    return "".join(parts)


def tokenize_in_java(captions: list[str], jar: Path) -> list[str]:
    """Return the program's tokens of each caption, punctuation included."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "captions.txt")
        source.write_text("\n".join(captions), encoding="utf-8", newline="\n")
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        run = subprocess.run([*command, str(source)], capture_output=True, check=True)
    return run.stdout.decode("utf-8").rstrip("\n").split("\n")


def main() -> None:
    """Write the fixture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jar", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data" / "ptb_java.json.gz")
    arguments = parser.parse_args()
    draw = random.Random(20261122)
    kinds = [(plain, 5000), (simple, 1500), (nasty, 700)]
    captions = [make(draw) for make, count in kinds for _ in range(count)]
    tokens = [line.rstrip(" ") for line in tokenize_in_java(captions, arguments.jar)]
    assert len(tokens) == len(captions), "one line of output per caption"
    data = {
        "oracle": "Stanford CoreNLP 3.4.1, PTBTokenizer -preserveLines -lowerCase",
        "counts": {make.__name__: count for make, count in kinds},
        "captions": captions,
        "tokens": tokens,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    with gzip.GzipFile(arguments.output, "wb", mtime=0) as file:
        file.write(text.encode("utf-8"))
    print(f"{len(captions)} captions, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
