"""One JSONL of metrics a run: a line a step and a line a validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transfuse.errors import CheckpointError


class MetricsLog:
    """Appends records that carry a `step`; opened again at step n, it first drops what came after n.

    Raises CheckpointError naming the file when the disk refuses.
    """

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        self._path = path
        kept = [record for record in read_metrics(path) if record["step"] <= resumed_at] if resumed_at else []
        beside = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from error

    def write(self, **record: Any) -> None:
        """Append one record."""
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self._path}: {error.strerror}; checkpoints already written are intact"
            ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records up to the first line that a crash cut short or damaged."""
    records = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        records.append(record)
    return records
