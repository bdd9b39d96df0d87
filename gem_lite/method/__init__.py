"""The method: CLIP's towers, GEM's attention, and what turns features into maps and labels.

Here lives everything that a paper changes. It needs torch and einops only, imports nothing from
outside this folder, and works on tensors when it is copied alone, under any name.
"""
