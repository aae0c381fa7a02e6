"""The loop of a decoder process: the name of a file in, an array out, until standard input ends.

`decoding.py` starts it; by hand it is `python -m transfuse.data.decoder KIND SETTINGS`. A request is a line: a path as
a JSON string. A reply is a line, a JSON object, and the bytes of an array where it gives a `dtype` and `shape`; the
first reply, to no request, is empty.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transfuse.data.images import ImageConfig, read_image
from transfuse.data.sounds import Sound, SoundConfig, read_sound

KINDS: dict[str, tuple[type[ImageConfig] | type[SoundConfig], Any]] = {
    "image": (ImageConfig, read_image),
    "sound": (SoundConfig, read_sound),
}
"""What is decoded: the class of its settings and its reader."""


def main() -> None:
    """Answer the requests on standard input; the arguments are a kind and its settings as JSON."""
    kind, settings = sys.argv[1:]
    config_type, read = KINDS[kind]
    config = config_type.from_json(settings)
    replies = os.fdopen(os.dup(1), "wb")
    _silence(1)
    _write(replies, {})
    _silence(2)  # not before everything is imported: a decoder that cannot start says why
    for line in sys.stdin.buffer:
        _answer(replies, Path(json.loads(line)), read, config)


def _silence(descriptor: int) -> None:
    """Send what libraries print, on purpose or not, to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _answer(replies: BinaryIO, path: Path, read: Any, config: Any) -> None:
    try:
        found = read(path, config)
    except Exception as error:  # whatever is wrong with one file, the next is read
        _write(replies, {"refused": str(error).removeprefix(f"{path}: ") or type(error).__name__})
        return
    if isinstance(found, Sound):
        _write(replies, {"seconds": found.seconds, "seconds_used": found.seconds_used}, found.frames_TM)
    else:
        _write(replies, {}, found)


def _write(replies: BinaryIO, header: dict[str, Any], array: np.ndarray | None = None) -> None:
    if array is not None:
        header |= {"dtype": array.dtype.name, "shape": array.shape}
    replies.write(json.dumps(header).encode() + b"\n")
    if array is not None:
        replies.write(array.data)
    replies.flush()  # an answer that waits here while the next file ends the process would be lost


if __name__ == "__main__":
    main()
