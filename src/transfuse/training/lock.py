"""One training at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transfuse.errors import CheckpointError


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder`/lock inside; it is let go when the process ends, however it ends.

    Raises CheckpointError if another process holds it. Where the system has no such locks (Windows) nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "lock").open("w")
    except OSError as error:
        raise CheckpointError(f"cannot write {folder / 'lock'}: {error.strerror}") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"{folder} is in use by another training; choose another folder") from error
        yield
