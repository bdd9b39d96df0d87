"""The version, on its own so that building reads it without importing PyTorch."""

__version__ = "0.1.0"
