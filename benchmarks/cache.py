"""Where large made things are kept between runs: never in the checkout."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory(*parts: str) -> Path:
    """`$XDG_CACHE_HOME/llamafn/<parts>`, made if it is not there."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(root, "llamafn", *parts)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
