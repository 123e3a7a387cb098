# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Questions about pictures
#
# Which kinds of questions does `unival-tiny` answer, and how much of that could one know without looking?
#
# Every row asks one generated question about a scene. Beside the model stands the answer that is most frequent for its
# kind of question on the same rows, the best that a model that looks at nothing but the kind could do.

# %%
import textwrap
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np

import unival

# %% tags=["parameters"]
NUM_ROWS = 600

# %%
answer = unival.pipeline("vqa")
rows = answer.rows(world="test", limit=NUM_ROWS)
result = answer.evaluate(rows)

# %% [markdown]
# One question of each kind; green is right.

# %%
kinds = np.array([record["question_type"] for record in result.records])
figure, axes = plt.subplots(1, len(set(kinds)), figsize=(16, 3.8), layout="constrained", squeeze=False)
for axis, kind in zip(axes.flat, sorted(set(kinds)), strict=True):
    i = int(np.flatnonzero(kinds == kind)[0])
    axis.imshow(rows[i]["image"], interpolation="lanczos")
    axis.set_title(textwrap.fill(result.records[i]["question"], 26), fontsize=10)
    color = "darkgreen" if result.scores["accuracy"][i] else "firebrick"
    axis.text(0.5, -0.1, result.predictions[i], transform=axis.transAxes, ha="center", color=color, fontsize=13)
    axis.axis("off")

# %% [markdown]
# Accuracy by kind of question, and what it is above the most frequent answer (paired on the same rows: an interval
# above 0 means that the model looks).

# %%
table = {"all questions": result.scores["accuracy"]}
for kind in sorted(set(kinds)):
    right = result.scores["accuracy"][kinds == kind]
    references = [r["answers"][0] for r, k in zip(result.records, kinds, strict=True) if k == kind]
    blind = np.array(references) == Counter(references).most_common(1)[0][0]
    table |= {kind: right, f"{kind}, above the most frequent answer": right - blind}
unival.intervals(table)
