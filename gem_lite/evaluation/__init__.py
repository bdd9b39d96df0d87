"""Scoring segmentations on the field's data sets: readers, protocols, counts, the command.

Nothing else in the package needs this folder; a vendored copy may leave it out.
"""
