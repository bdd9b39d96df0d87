"""Faster kernels beneath the network, for inference on a CPU: the same maths, other operators.

`switch` turns them on for a call, by a fixed rule. `products` has oneDNN's matrix products and
attention in blocks, `layers` faster ways through whole layers, while their code is that in `forms`.
"""
