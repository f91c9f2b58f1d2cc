"""``python -m amdim_fast`` is ``amdim-fast``."""

import sys

from amdim_fast.cli.main import main

sys.exit(main())
