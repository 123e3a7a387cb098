"""The UnIVAL encoder-decoder as a native `transformers` model (arXiv 2307.16184)."""
