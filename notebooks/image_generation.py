# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Pictures from captions
#
# UnIVAL generates a picture by writing its codes, as it writes words; a codec turns pictures into codes and codes into
# pictures. `unival-tiny-pictures` does so for single things on a coloured ground: 64 codes out of 512 for 64 x 64
# pixels. The full model and the released codec (VQGAN of taming-transformers) work the same way; they do not ship.

# %%
import matplotlib.pyplot as plt

import unival
from unival.codec.base import load_codec, to_picture
from unival.codec.train import world_pictures
from unival.draw import codec_of, draw

# %% tags=["parameters"]
MODEL, NUM_SAMPLES = "unival-tiny-pictures", 16
THINGS = ("a rocket", "a pear", "a soccer ball", "a mushroom", "a penguin", "a red apple", "a bus", "a fish")
COLOURS = ("blue", "yellow", "green", "pink")

# %% [markdown]
# ## What the codec keeps
#
# Pictures of the test split at 64 pixels, their codes (a colour for each of the 512), and what the codes become again.

# %%
codec, pixels = load_codec(codec_of(MODEL)), world_pictures("test", 8, max_objects=1)
codes = codec.encode(pixels)
figure, axes = plt.subplots(3, 8, figsize=(14, 5.4), layout="constrained")
for column, before, grid, after in zip(axes.T, pixels, codes, codec.decode(codes), strict=True):
    column[0].imshow(to_picture(before))
    column[1].imshow(grid.numpy(), cmap="nipy_spectral", vmin=0, vmax=codec.num_codes)
    column[2].imshow(to_picture(after))
for axis in axes.flat:
    axis.axis("off")

# %% [markdown]
# ## What the model draws
#
# Of 16 drawings, the one is shown to which `unival-tiny` gives the caption most probably (the paper chooses by CLIP).

# %%
captions = [f"{thing} on a {colour} background" for colour in COLOURS for thing in THINGS]
pictures = draw(captions, MODEL, samples=NUM_SAMPLES, judge="unival-tiny")
figure, axes = plt.subplots(len(COLOURS), len(THINGS), figsize=(14, 7.4), layout="constrained", squeeze=False)
for axis, caption, picture in zip(axes.flat, captions, pictures, strict=True):
    axis.imshow(picture)
    axis.set_title(caption.replace(" on a ", "\non a "), fontsize=9)
    axis.axis("off")

# %% [markdown]
# What does `unival-tiny` see in drawings that nobody chose? `thing`: it names the thing as the caption does, of 1,052;
# `ground`: it sees the colour.

# %%
pictures = draw(captions, MODEL)
things = unival.pipeline("caption")(pictures)
grounds = unival.pipeline("vqa")(pictures, "what color is the background?")
thing = [seen["prediction"] == caption.split(" on ")[0] for seen, caption in zip(things, captions, strict=True)]
ground = [seen["prediction"] == caption.split()[-2] for seen, caption in zip(grounds, captions, strict=True)]
unival.intervals({"thing": thing, "ground": ground})
