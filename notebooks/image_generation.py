# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Pictures as codes
#
# UnIVAL generates a picture by writing its codes, as it writes words; a codec turns pictures into codes and codes into
# pictures. How much of a picture of 64 pixels survives 256 codes out of 512?
#
# What this notebook does not show: a picture generated from text. The released codec (VQGAN of taming-transformers)
# does not ship, `unival-tiny` was not trained to write codes, and a codec trained for a minute is no base for either.
# Here a small one learns from nothing, and the round trip shows what it is worth.

# %%
import matplotlib.pyplot as plt
import torch

import unival
from unival.codec.base import load_codec, to_picture
from unival.codec.train import train_codec, world_pictures

# %% tags=["parameters"]
OUT = "../runs/notebooks/codec"
STEPS, NUM_TRAIN, NUM_TEST = 400, 1000, 200

# %%
report = train_codec(OUT, steps=STEPS, num_pictures=NUM_TRAIN, num_test=NUM_TEST)
codec, pixels = load_codec(OUT), world_pictures("test", NUM_TEST)
with torch.no_grad():
    codes = codec.encode(pixels)
    restored = codec.decode(codes)

# %% [markdown]
# Pictures of the test split at 64 pixels, their codes (a colour for each of the 512), and what the codes become again.

# %%
figure, axes = plt.subplots(3, 8, figsize=(14, 5.4), layout="constrained")
for i, column in zip(range(min(8, NUM_TEST)), axes.T, strict=False):
    column[0].imshow(to_picture(pixels[i]))
    column[1].imshow(codes[i].numpy(), cmap="nipy_spectral", vmin=0, vmax=codec.num_codes)
    column[2].imshow(to_picture(restored[i]))
for axis in axes.flat:
    axis.axis("off")

# %% [markdown]
# Mean absolute error of a picture, in levels of 0 to 255, beside that of one flat colour (the picture's mean).

# %%
errors = (restored - pixels).abs().mean((1, 2, 3)) * 127.5
flat = (pixels.mean((2, 3), keepdim=True) - pixels).abs().mean((1, 2, 3)) * 127.5
print(f"{report['codes_used']} of {codec.num_codes} codes are used, as evenly as {report['perplexity']:.0f} equal ones")
unival.intervals({"through the codec": errors, "flat colour": flat, "difference": errors - flat})
