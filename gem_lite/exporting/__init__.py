"""Models as files that other programs run without this package: `torch.export`'s and ONNX."""
