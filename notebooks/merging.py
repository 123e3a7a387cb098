# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Merging: what lies between two specialists?
#
# One copy of `unival-tiny` is fine-tuned on captions, another on grounding, both in an art style that it never saw.
# Half of the way between their weights: is there a model that is good at both, or a barrier?

# %%
from pathlib import Path

import unival
from soups.figures import Inputs, draw
from soups.figures.spec import spell
from soups.methods import get_method
from soups.path import barriers
from soups.points import segment
from soups.state import open_checkpoint
from soups.sweep import Sweep, run_sweep
from unival.soup_evaluator import evaluator
from unival.train import train_file

# %% tags=["parameters"]
CONFIGS, OUT = "../configs/soups/train", "../runs/notebooks/merging"
OVERRIDES: list[str] = []
NUM_ROWS, NUM_POINTS = 200, 11

# %%
METRICS = {"caption": "cider_d", "grounding": "accuracy@0.5"}
folders = {name: train_file(f"{CONFIGS}/merge_{name}.yaml", f"out={OUT}/{name}", *OVERRIDES) for name in METRICS}
models = [open_checkpoint(folder, name) for name, folder in folders.items()]
parts = {task: {"task": task, "metrics": [metric]} for task, metric in METRICS.items()}
args = {"parts": parts, "styles": ["twemoji"], "options": {"max_objects": 2}, "limit": NUM_ROWS}
sweep = Sweep(models, get_method("linear"), "unival.soup_evaluator:evaluator", args)
results = run_sweep(sweep, segment(NUM_POINTS), Path(OUT) / "sweep")

# %% [markdown]
# Scores along the path, each in units of what the caption specialist has; `mean` is the mean of both tasks.

# %%
draw("metrics-vs-lambda", Inputs({"path": results}))

# %% [markdown]
# The barrier is how far a score dips below the straight line between the ends (0: nowhere), the gain how far it rises
# above.

# %%
for metric, found in barriers(results).items():
    print(f"{metric}: barrier {spell(found['chord'])}, gain {spell(found['gain'])}")

# %% [markdown]
# The start, both specialists and their average:

# %%
scores = {"start": evaluator("unival-tiny", **args).evaluate(), "caption specialist": results[0].scores}
scores |= {"grounding specialist": results[-1].scores, "average of both": results[NUM_POINTS // 2].scores}
unival.intervals({f"{task}: {name}": row[task] for task in METRICS for name, row in scores.items()})
