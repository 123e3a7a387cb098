# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Where is it?
#
# Given an expression, `unival-tiny` writes four position tokens: a box. How often does it overlap the thing by half,
# and is that harder for small things?

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import unival

# %% tags=["parameters"]
NUM_ROWS = 300

# %%
find = unival.pipeline("grounding")
rows = find.rows(world="test", limit=NUM_ROWS)
result = find.evaluate(rows)

# %% [markdown]
# The first eight rows; solid: what the model says (green if it overlaps the reference by half), dashed: the reference.

# %%
figure, axes = plt.subplots(2, 4, figsize=(13, 7.4), layout="constrained")
for i, axis in zip(range(min(8, NUM_ROWS)), axes.flat, strict=False):
    axis.imshow(rows[i]["image"], interpolation="lanczos")
    axis.set_title(textwrap.fill(result.records[i]["text"], 32), fontsize=11)
    color = "limegreen" if result.scores["accuracy@0.5"][i] else "red"
    for box, line in ((result.records[i]["box"], ("black", ":")), (result.predictions[i], (color, "-"))):
        x0, y0, x1, y1 = box or (0, 0, 0, 0)
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=line[0], ls=line[1], lw=2.5))
    axis.axis("off")

# %% [markdown]
# `accuracy@0.5` and the mean IoU of all rows, then `accuracy@0.5` of the smallest, middle and largest third of the
# things.

# %%
boxes = np.array([record["box"] for record in result.records])
area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
third = np.searchsorted(np.quantile(area, [1 / 3, 2 / 3]), area)
hits = result.scores["accuracy@0.5"]
unival.intervals(result.scores | {name: hits[third == k] for k, name in enumerate(("small", "medium", "large"))})
