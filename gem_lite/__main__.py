"""`python -m gem_lite`."""

import sys

from .tools.cli import main

sys.exit(main())
