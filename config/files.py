"""How files that people keep are written."""

from __future__ import annotations

import shutil
from pathlib import Path


def replace(path: str | Path, content: str | bytes) -> None:
    """Write beside `path`, then rename: whatever fails, `path` is whole, the old or the new.

    A link stays a link, and the file keeps its permissions. Text is UTF-8, its line ends as given.
    """
    path = Path(path).resolve()
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
