"""Scoring segmentations on the field's data sets: readers, protocols, counts, the command.

Only the command line imports this folder; the rest of the package works without it.
"""
