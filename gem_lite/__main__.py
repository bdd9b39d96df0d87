"""`python -m gem_lite`."""

import sys

from .cli import main

sys.exit(main())
