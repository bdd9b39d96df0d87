# %% [markdown]
# # A picture and words, cell by cell
#
# Open this file in VS Code, PyCharm or Spyder, which run it cell by cell, or make a notebook of it
# with `jupytext --to notebook examples/notebook.py`. It needs no network: the model ships along.

# %%
import torch
from PIL import Image

import gem_lite as gem
from gem_lite.tools.demo import demo_picture

model, transform = gem.create_model_and_transforms("tiny-emoji", "v2")
model  # its layers

# %% [markdown]
# A picture, and the words to look for. `Image.open("photo.jpg")` takes one of your own.

# %%
picture, words = demo_picture()
picture

# %% [markdown]
# One map per word, each from 0 to 1. In a notebook `visualize` shows its sheet by itself.

# %%
image = transform(picture)[None]  # [1, 3, h, w]
with torch.no_grad():
    maps = model(image, words)  # [1, words, h, w]
overlays = model.visualize(picture.resize((240, 240)), words, maps)

# %% [markdown]
# Which pixel belongs to which word; the last line of a cell displays itself.

# %%
with torch.no_grad():
    found = model.segment(image, words, background=["background"])
found

# %% [markdown]
# The same weights without GEM: plain CLIP's maps, for comparison.

# %%
with torch.no_grad():
    plain = model(image, words, return_ori=True)
difference = (maps - plain).abs().mean().item()
sheet = Image.new("RGB", (480, overlays[0].height))
for place, values in enumerate((maps, plain)):
    one = gem.visualize(picture.resize((240, 240)), words[:1], values[:, :1])[0]
    sheet.paste(one, (240 * place, 0))
sheet
