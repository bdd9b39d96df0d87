"""The command line, `gem-lite` and `python -m gem_lite`: finds the command and runs it."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from ..checkpoints import fetch
from ..checkpoints.known import find_file, known_row
from .commands import app, convert, demo, evaluate, heatmap, models, quality, segment, vendor
from .commands.console import one_line, tell, telling
from .commands.model import SHIPPED
from .demo import DEMO_PICTURE

COMMANDS: dict[str, ModuleType] = {
    "heatmap": heatmap,
    "segment": segment,
    "evaluate": evaluate,
    "app": app,
    "models": models,
    "convert": convert,
    "demo": demo,
    "bench-quality": quality,
    "vendor": vendor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 = all done, 1 = some inputs failed, 2 = a user's mistake."""
    args = _parser().parse_args(arguments)
    code = 0
    try:
        with telling(fetch.__name__):  # a download's progress, and its further attempts
            code = args.run(args) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError) as error:  # the last one names an extra
        tell(str(error))
        return 2
    return code


class _Parser(argparse.ArgumentParser):
    """argparse's, which says what is wrong in one line and leaves the usage to --help."""

    examples = ""

    def format_help(self) -> str:
        """The help, with examples that can be pasted as they stand."""
        return super().format_help() + (_examples(self.examples) if self.examples else "")

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gem-lite",
        description="Heat maps that show where in a picture a word's thing is.",
        epilog="gem-lite COMMAND --help has a command's options, and examples. Exit codes:"
        " 0 = all done, 1 = some inputs failed, 2 = a mistake in what was asked for.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        about = f"{module.HELP[0].upper()}{module.HELP[1:]}."
        command = commands.add_parser(name, help=module.HELP, description=about)
        command.examples = module.EXAMPLES
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _examples(text: str) -> str:
    """The lines with the shipped files filled in, where they lie."""
    for name, wanted in (("demo", DEMO_PICTURE), ("weights", known_row(*SHIPPED))):
        try:
            path = find_file(wanted)
        except FileNotFoundError:  # $GEM_LITE_WEIGHTS names no folder; a command will say so
            path = None
        text = text.replace(f"{{{name}}}", "FILE" if path is None else shlex.quote(_short(path)))
    return "\nexamples:\n" + "".join(f"  {line}\n" for line in text.splitlines())


def _short(path: Path) -> str:
    """From here on where that is shorter."""
    inside = path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd()) if inside else path)
