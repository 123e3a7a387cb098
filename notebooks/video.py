# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Clips: what moves, and which way?
#
# `unival-tiny` looks at eight frames of a clip through an encoder of its own. Does it describe what moves, and can it
# tell directions, which no single frame shows?

# %%
import matplotlib.pyplot as plt
import numpy as np

import unival
from unival.data.video import load_video

# %% tags=["parameters"]
NUM_CAPTIONS = 150
NUM_QUESTIONS = 300

# %%
describe, answer = unival.pipeline("video-caption"), unival.pipeline("video-vqa")
clips = describe.rows(world="test", limit=NUM_CAPTIONS)
captions = describe.evaluate(clips)
answers = answer.evaluate(answer.rows(world="test", limit=NUM_QUESTIONS))

# %% [markdown]
# Four clips, one a row; green is right word for word, grey is the reference.

# %%
figure, axes = plt.subplots(4, 8, figsize=(14, 8), gridspec_kw={"wspace": 0.04, "hspace": 0.24})
for i, strip in zip(range(min(4, NUM_CAPTIONS)), axes, strict=False):
    for axis, frame in zip(strip, load_video(clips[i]["video"], 8), strict=True):
        axis.imshow(frame, interpolation="lanczos")
        axis.axis("off")
    color = "darkgreen" if captions.scores["exact"][i] else "firebrick"
    strip[0].set_title(captions.predictions[i], loc="left", color=color)
    strip[4].set_title(captions.records[i]["caption"], loc="left", color="grey")

# %% [markdown]
# Captions (CIDEr-D runs from 0 to 10), then questions by kind.

# %%
kinds = np.array([record["question_type"] for record in answers.records])
by_kind = {f"questions: {kind}": answers.scores["accuracy"][kinds == kind] for kind in sorted(set(kinds))}
unival.intervals({f"captions: {k}": v for k, v in captions.scores.items()} | by_kind)
