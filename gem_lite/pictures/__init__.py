"""Pictures: opening files, the transform to tensors, and maps and labels drawn as pictures.

Needs Pillow, NumPy and torch; knows no model. Sizes of Pillow's are (width, height), ours (h, w).
"""
