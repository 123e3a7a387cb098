"""Text clean-up of captions and questions, as in the original (specification 3.2)."""

import re

LEADING = ",.!?*#:;~"


def clean_question(text: str, max_words: int) -> str:
    """Lower the case, open up hyphens and slashes, drop leading marks and doubled spaces; keep `max_words` words."""
    return _clean(text, max_words)


def clean_caption(text: str, max_words: int) -> str:
    """Do as `clean_question`; the placeholder `<person>` becomes a word too."""
    return _clean(text, max_words, person="person")


def _clean(text: str, max_words: int, person: str = "<person>") -> str:
    text = text.lower().lstrip(LEADING).replace("-", " ").replace("/", " ").replace("<person>", person)
    # Single tabs and line ends stay, only runs become one space.
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])
