# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A rewarded soup
#
# Two copies of one captioner are tuned by reinforcement: one on CIDEr-D against detailed references, one on brevity.
# Do the mixtures of their weights trade the rewards off better than the straight line between them?
#
# Rewarded soups (arXiv 2306.04488), at the size of two minutes of training.

# %%
from pathlib import Path

import numpy as np

import unival
from soups.figures import Inputs, draw
from soups.methods import get_method
from soups.points import segment
from soups.state import open_checkpoint
from soups.sweep import Sweep, run_sweep
from unival.evaluate import soup_evaluator
from unival.train import train_file

# %% tags=["parameters"]
CONFIGS, OUT = "../configs/demo", "../runs/notebooks/rewarded_soup"
OVERRIDES: list[str] = []
NUM_ROWS, NUM_POINTS = 200, 11

# %%
NAMES, REWARDS = ("detail", "brevity"), ("cider_d", "brevity")
folders = {name: train_file(f"{CONFIGS}/{name}.yaml", f"out={OUT}/{name}", *OVERRIDES) for name in NAMES}
models = [open_checkpoint(folder, name) for name, folder in folders.items()]
args = {"metrics": ",".join(REWARDS), "content": "detailed_caption", "limit": NUM_ROWS}
sweep = Sweep(models, get_method("linear"), "unival.evaluate:soup_evaluator", args)
results = run_sweep(sweep, segment(NUM_POINTS), Path(OUT) / "sweep")
start = soup_evaluator("unival-tiny", **args).evaluate()

# %% [markdown]
# The front: every dot is a mixture. Below it stands the area between the line through the soups and the straight line,
# as a share of the box that the two specialists span (one half would reach its best corner): an interval above 0 says
# that the soups trade off better, one below 0 that they do so worse.

# %%
draw("front", Inputs({"soup": results}, *REWARDS, init={reward: float(np.mean(start[reward])) for reward in REWARDS}))

# %% [markdown]
# What they say along the way:

# %%
draw("strip", Inputs({"soup": results}))

# %% [markdown]
# Start, specialists, their average, and how much the average has above the mean of the specialists:

# %%
rows = {"start": start, "detail": results[0].scores, "brevity": results[-1].scores}
rows |= {"average": results[NUM_POINTS // 2].scores}
table = {f"{reward}: {name}": np.array(scores[reward]) for reward in REWARDS for name, scores in rows.items()}
for reward in REWARDS:
    start, *ends, average = (table[f"{reward}: {name}"] for name in rows)
    table[f"{reward}: average above the mean of both"] = average - np.mean(ends, axis=0)
unival.intervals(table)
