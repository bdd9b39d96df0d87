"""`gem-lite evaluate`: mIoU on the field's data sets."""

from ..evaluation.command import evaluate as run
from ..evaluation.options import add_evaluate_arguments as add_arguments

HELP = "mIoU on the field's data sets, under the protocols of the papers"
EXAMPLES = """\
gem-lite evaluate --dataset voc21 --root VOCdevkit --protocol clearclip
gem-lite evaluate --dataset folder --root photos --protocol gem --limit 100
"""

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]
