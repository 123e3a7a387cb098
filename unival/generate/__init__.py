"""Write with a trained model: the original's search through `transformers`' `generate`, and scores of given answers."""

from unival.generate.candidates import score_answers
from unival.generate.options import SearchOptions
from unival.generate.search import Hypothesis, prompt_prefix, search
from unival.generate.trie import AnswerTrie

__all__ = ["AnswerTrie", "Hypothesis", "SearchOptions", "prompt_prefix", "score_answers", "search"]
