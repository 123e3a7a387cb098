# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Captions of pictures
#
# What does `unival-tiny` say about pictures whose combinations of things it has never seen, and how does that depend
# on how many things there are?
#
# The pictures are scenes of the embedded world. Every scene has one canonical description, so that "right" means the
# same words, and `names` means that exactly the right things are named.

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np

import unival

# %% tags=["parameters"]
NUM_ROWS = 300

# %%
describe = unival.pipeline("caption")
rows = describe.rows(world="test", limit=NUM_ROWS)
result = describe.evaluate(rows)

# %% [markdown]
# Eight scenes, two of each size where there are as many; green is right word for word, orange names the right things,
# red does not.

# %%
num_things = np.array([len(record["objects"]) for record in result.records])
chosen = [int(i) for n in (1, 2, 3, 4) for i in np.flatnonzero(num_things == n)[:2]]
figure, axes = plt.subplots(2, 4, figsize=(13, 7.6), layout="constrained")
for axis, i in zip(axes.T.flat, chosen, strict=False):
    good = result.scores["exact"][i] + result.scores["names"][i]
    axis.imshow(rows[i]["image"], interpolation="lanczos")
    axis.set_title(textwrap.fill(result.predictions[i], 32), color=("firebrick", "darkorange", "darkgreen")[int(good)])
for axis in axes.flat:
    axis.axis("off")

# %% [markdown]
# CIDEr-D runs from 0 to 10; the others are shares of the captions.

# %%
unival.intervals(result.scores)

# %% [markdown]
# Captions that name exactly the right things, by the number of things in the picture:

# %%
by_number = {f"{n} in the picture": result.scores["names"][num_things == n] for n in sorted(set(num_things))}
unival.intervals(by_number)
