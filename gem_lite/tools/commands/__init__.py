"""The commands of `gem-lite`, a module each; cli.py has the list.

A command's module has HELP (a line), EXAMPLES (lines to paste, with `{demo}` and `{weights}` for
files that ship with the package), `add_arguments(parser)` and `run(args)`, which returns the exit
code: None or 0 = all done, 1 = some inputs failed. A user's mistake is a ValueError or OSError;
cli.py shows its text as one line.
"""
