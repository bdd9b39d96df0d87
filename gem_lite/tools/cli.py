"""The command line, `gem-lite` and `python -m gem_lite`: finds the command and runs it."""

import argparse
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from .._version import __version__
from ..method.config import nearest
from .commands import (
    app,
    convert,
    demo,
    evaluate,
    export,
    heatmap,
    models,
    quality,
    segment,
    vendor,
)
from .commands.console import one_line, say, tell, telling, wipe

# Their modules import torch when they run, not before: a mistake is told at once.
COMMANDS: dict[str, ModuleType] = {
    "heatmap": heatmap,
    "segment": segment,
    "evaluate": evaluate,
    "app": app,
    "models": models,
    "convert": convert,
    "export": export,
    "demo": demo,
    "bench-quality": quality,
    "vendor": vendor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 = all done, 1 = some inputs failed, 2 = a user's mistake."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stderr is None:  # closed by whoever started the program
        sys.stderr = io.StringIO()
    if sys.stdout is None:
        tell("standard output is closed; open it, or send it to /dev/null")
        return 2
    try:
        with _stopped_by_sigterm():
            code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has seen enough
        _give_up_output()
        return 0
    except KeyboardInterrupt:
        wipe()
        return 130
    except _StoppedError:
        tell("stopped by SIGTERM; files that are there are whole")
        return 143
    except (ValueError, OSError, ImportError, MemoryError) as error:  # ImportError names an extra
        tell(str(error) or type(error).__name__)
        _give_up_output()
        return 2
    return code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        say(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        say(f"gem-lite {__version__}")
        return 0
    if words[0] not in COMMANDS:
        _Parser(prog="gem-lite").error(
            f"{words[0]!r} is not a command; nearest: {nearest(words[0], list(COMMANDS), 1)}"
        )
    parser = command_parser(words[0])
    args = parser.parse_intermixed_args(words[1:])
    package = __name__.removesuffix(".tools.cli")  # whatever a copy is called
    with telling(f"{package}.checkpoints.fetch"):  # a download's progress, and its further attempts
        return COMMANDS[words[0]].run(args) or 0


class _Parser(argparse.ArgumentParser):
    """argparse's, which says what is wrong in one line and leaves the usage to --help."""

    examples = ""

    def format_help(self) -> str:
        """The help, with examples that can be pasted as they stand."""
        return super().format_help() + (example_lines(self.examples) if self.examples else "")

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command's arguments."""
    module = COMMANDS[name]
    about = f"{module.HELP[0].upper()}{module.HELP[1:]}."
    parser = _Parser(prog=f"gem-lite {name}", description=about)
    parser.examples = module.EXAMPLES
    module.add_arguments(parser)
    return parser


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {module.HELP}" for name, module in COMMANDS.items())
    return f"""usage: gem-lite COMMAND ...

Heat maps that show where in a picture a word's thing is.

{rows}

gem-lite COMMAND --help has a command's options, and examples; --version says which gem-lite this
is. Exit codes: 0 = all done, 1 = some inputs failed, 2 = a mistake in what was asked for."""


def example_lines(text: str) -> str:
    """The lines with the shipped files filled in, where they lie."""
    from ..checkpoints.known import find_file, known_row
    from .demo import DEMO_PICTURE, SHIPPED

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


class _StoppedError(BaseException):
    """SIGTERM came."""


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: temporary files are removed on the way out."""

    def stop(number: int, frame: object) -> NoReturn:
        raise _StoppedError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _give_up_output() -> None:
    """What cannot be written any more is not tried once again when Python ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
