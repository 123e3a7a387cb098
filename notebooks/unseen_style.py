# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Out of distribution: an art style that nobody has seen
#
# One copy of `unival-tiny` is tuned on pictures in the style of Fluent, another on those of Noto. In the third style,
# Twemoji, which no training has seen: is the average of their weights better than either?

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import unival
from soups.methods import get_method
from soups.points import segment
from soups.state import open_checkpoint
from soups.sweep import Sweep, run_sweep
from unival.evaluate import soup_evaluator
from unival.train import train_file

# %% tags=["parameters"]
CONFIGS, OUT = "../configs/demo", "../runs/notebooks/unseen_style"
OVERRIDES: list[str] = []
NUM_ROWS = 200

# %%
STYLES = ("fluent-emoji-flat", "noto", "twemoji")
folders = {n: train_file(f"{CONFIGS}/style_{n}.yaml", f"out={OUT}/{n}", *OVERRIDES) for n in ("fluent", "noto")}
models = [open_checkpoint(folder, name) for name, folder in folders.items()]
args = {"metrics": "names", "styles": ",".join(STYLES), "limit": NUM_ROWS}
sweep = Sweep(models, get_method("linear"), "unival.evaluate:soup_evaluator", args)
fluent, both, noto = (result.scores for result in run_sweep(sweep, segment(3), Path(OUT) / "sweep"))
scores = {"start": soup_evaluator("unival-tiny", **args).evaluate(), "fluent": fluent, "noto": noto, "average": both}

# %% [markdown]
# A scene in each style (the last is the unseen one), and the share of captions that name exactly the right things.

# %%
figure, axes = plt.subplots(2, 3, figsize=(13, 6.4), layout="constrained", height_ratios=[1.6, 1])
for style, (top, bottom) in zip(STYLES, axes.T, strict=True):
    top.imshow(unival.pipeline("caption").rows(world="test", styles=[style], limit=3)[1]["image"])
    top.set_axis_off()
    table = unival.intervals({name: row[f"names@{style}"] for name, row in scores.items()})
    bottom.barh(list(table.rows), table.means, xerr=table.errors, color=["silver", "C0", "C1", "C2"])
    bottom.set(title=style, xlim=(0, 1))

# %% [markdown]
# In the unseen style, and the average against the others (paired on the same pictures):

# %%
unseen = {name: np.array(row["names@twemoji"]) for name, row in scores.items()}
unival.intervals(unseen | {f"average above {n}": unseen["average"] - unseen[n] for n in ("start", "fluent", "noto")})
