"""Progress bars, on stderr."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*, shown: bool, **options: Any) -> Any:
    """A bar of tqdm with these ``options``, which a program may hide.

    Where it is shown, tqdm's environment variables hold for what the options leave open; among
    them, TQDM_DISABLE hides it.
    """
    hidden: dict[str, Any] = {} if shown else {"disable": True}
    return tqdm(file=sys.stderr, **hidden, **options)
