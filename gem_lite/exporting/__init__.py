"""Models as files that other programs run without this package: `torch.export`'s and ONNX."""

FORMATS = ("pt2", "onnx")
OUTPUTS = ("features", "patches", "cosines", "maps", "labels", "text")
