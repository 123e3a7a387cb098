# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Sounds: a modality that joins late
#
# `unival-tiny` has never heard a sound. An audio encoder that was trained with labels joins it, and the model is
# fine-tuned on captions of sounds while all encoders stay as they are. What does it hear in sounds whose recordings
# are new to it?

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np

import unival
from unival.data.sounds import families, family_of_caption
from unival.train import train_file

# %% tags=["parameters"]
CONFIG, OUT = "../configs/demo/audio.yaml", "../runs/notebooks/audio"
OVERRIDES: list[str] = []
NUM_ROWS = 150

# %%
model = train_file(CONFIG, f"out={OUT}", "evaluations=[]", *OVERRIDES)
describe = unival.pipeline("audio-caption", model=model)
rows = describe.rows(world="test", limit=NUM_ROWS)
result = describe.evaluate(rows)

# %% [markdown]
# Spectrograms of six sounds: time to the right, pitch upwards. Above: what the model says, green if word for word;
# below: the reference.

# %%
figure, axes = plt.subplots(2, 3, figsize=(13, 6.4), layout="constrained")
for i, axis in zip(range(min(6, NUM_ROWS)), axes.flat, strict=False):
    axis.specgram(rows[i]["audio"] + 1e-5, NFFT=512, Fs=describe.processor.sample_rate, noverlap=384, cmap="magma")
    color = "darkgreen" if result.scores["exact"][i] else "firebrick"
    axis.set_title(textwrap.fill(result.predictions[i], 44), color=color)
    axis.set(xlabel=textwrap.fill(result.records[i]["caption"], 44), xticks=[], yticks=[])

# %% [markdown]
# `family`: the first sound that is named belongs to the family of the first sound that is heard. Chance is one over
# the number of families; always naming the most frequent one would give the last row.

# %%
known, first = family_of_caption(), np.array([record["families"][0] for record in result.records])
named = np.array([str(known.get(text.split(" followed by ")[0])) for text in result.predictions])
frequent = max(families(), key=first.tolist().count)
unival.intervals(result.scores | {"family": named == first, f"always {frequent}": first == frequent})
