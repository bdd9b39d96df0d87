"""`gem-lite evaluate`: mIoU on the field's data sets."""

import argparse

HELP = "mIoU on the field's data sets, under the protocols of the papers"
EXAMPLES = """\
gem-lite evaluate --dataset voc21 --root VOCdevkit --protocol clearclip
gem-lite evaluate --dataset folder --root photos --protocol gem --limit 100
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite evaluate`."""
    from ..evaluation.options import add_evaluate_arguments

    add_evaluate_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate, and write the scores."""
    from ..evaluation.command import evaluate

    evaluate(args)
