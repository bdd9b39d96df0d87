"""What there is to export and into what, for those who ask before PyTorch is imported."""

FORMATS = ("pt2", "onnx")
OUTPUTS = ("features", "patches", "cosines", "maps", "labels", "text")
