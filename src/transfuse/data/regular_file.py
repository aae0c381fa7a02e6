"""Files that can be read to an end."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

from transfuse.errors import DataError


def opened(path: Path) -> BinaryIO:
    """A file's bytes. Raises DataError if there are none, or if it is no file: reading a pipe or device may not end."""
    if "\0" in str(path):
        raise DataError(f"{str(path)!r}: no name of a file holds a zero byte")
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size > 0:
            return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path}: a directory, expected a file")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: a pipe, socket or device, expected a file")
    raise DataError(f"{path}: zero bytes")
