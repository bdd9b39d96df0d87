"""Weights: our files and other people's, the known checkpoints, fetching and converting.

Reads and writes tensors under CLIP's own names, and runs nothing that a file contains.
Needs torch and safetensors, and the standard library.
"""
