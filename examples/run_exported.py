"""Run an exported file without gem_lite or PyTorch: onnxruntime, numpy and Pillow.

    gem-lite export maps.onnx --prompts fish drum
    python examples/run_exported.py maps.onnx picture.png maps

Writes a grey picture for each word, as `gem-lite heatmap picture.png --format maps` does.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

file, picture_path, folder = sys.argv[1:]
session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["gem_lite"])

picture = Image.open(picture_path).convert("RGB")
height, width = about["size"]
pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
normal = (pixels / 255 - np.float32(about["mean"])) / np.float32(about["std"])
image = normal.transpose(2, 0, 1)[None]  # [1, 3, h, w]

(maps,) = session.run(["maps"], {"images": image})  # [1, words, h, w], each 0 to 1
Path(folder).mkdir(parents=True, exist_ok=True)
for word, heat in zip(about["words"], maps[0], strict=True):
    grey = np.asarray(Image.fromarray(heat).resize(picture.size)).clip(0, 1) * 255
    Image.fromarray(grey.round().astype(np.uint8)).save(Path(folder, f"{word}.png"))
