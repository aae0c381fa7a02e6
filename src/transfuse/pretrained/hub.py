"""Models by their name on a hub."""

from __future__ import annotations

import re
from pathlib import Path

from transfuse.errors import ModelDirectoryError

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["*.json", "*.safetensors"]


def local_directory(directory: str | Path) -> Path:
    """`directory` itself, or, where there is none and it has the form OWNER/NAME, a downloaded copy of that model.

    Weights other than safetensors are not downloaded. Raises ModelDirectoryError if neither is to be had.
    """
    path = Path(directory)
    if path.exists() or not _ID.fullmatch(str(directory)):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(directory), allow_patterns=_FILES))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ModelDirectoryError(
            f"{directory}: no such directory, and the hub gave no model of that name ({type(error).__name__})"
        ) from error
