"""``python -m amdim_fast`` is ``amdim-fast``."""

import sys

from amdim_fast.cli import main

sys.exit(main())
