"""Files decoded in processes of their own, so that one that crashes or hangs its decoder is reported, not fatal.

The decoders run `decoder.py` and nothing else; `multiprocessing` would import the caller's own program again, or fork
a process whose threads hold locks. One thread here hands out paths and collects arrays.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import transfuse
from transfuse.data.decoder import KINDS
from transfuse.data.images import ImageConfig
from transfuse.data.sounds import Sound, SoundConfig
from transfuse.errors import ConfigError, TransfuseError

FILES = 64
"""Files for which one more decoder is worth its start, where their number is not given."""

QUEUED = 8
"""Files a decoder has been asked for at a time, so that it never waits for the next name."""

AHEAD = 32
"""Files for each decoder that may be decoded before the one whose turn it is."""

LONGEST_REQUEST = 8_000
"""Bytes of a request. `QUEUED` of them fit into a pipe, so that sending one never waits; paths end at 4,096."""

PROGRAM = (
    "import sys; home = sys.argv.pop(1); home in sys.path or sys.path.insert(0, home);"
    "from transfuse.data.decoder import main; main()"
)
"""A decoder, of this very package wherever it lies; the arguments are the folder it lies in, and those of `main`."""

SECONDS_TO_START, SECONDS_TO_END = 120.0, 5.0

Decoded = np.ndarray | Sound


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be decoded, and why; the reason does not repeat its path."""

    reason: str


def decode(
    paths: Sequence[Path | None],
    config: ImageConfig | SoundConfig,
    *,
    n_workers: int | None = None,
    seconds: float = 60.0,
) -> Iterator[Decoded | Unreadable | None]:
    """What is in the files, in the order of `paths`: images as arrays (C, S, S), or sounds; None for no path.

    A file that is refused, that takes a decoder longer than `seconds`, or that ends it, is `Unreadable`. `n_workers`
    decoders, by default one for every `FILES` files up to as many as there are cores, run while the iterator is in use
    and end with it. Raises ConfigError for numbers out of range, TransfuseError if no decoder can be started.
    """
    if n_workers is not None and n_workers < 1:
        raise ConfigError(f"n_workers={n_workers} must be at least 1")
    if not seconds > 0:
        raise ConfigError(f"seconds={seconds} must be greater than 0")
    enough = max(1, math.ceil(sum(path is not None for path in paths) / FILES))
    return _decoded(paths, config, n_workers or min(_n_cores(), enough), seconds)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decoded(
    paths: Sequence[Path | None], config: ImageConfig | SoundConfig, n_workers: int, seconds: float
) -> Iterator[Decoded | Unreadable | None]:
    with contextlib.closing(_Decoders(paths, config, n_workers, seconds)) as decoders:
        for index, path in enumerate(paths):
            yield None if path is None else decoders.take(index)


class _Decoders:
    """Decoders at work on the files of `paths`, never far ahead of the one that is taken."""

    def __init__(
        self, paths: Sequence[Path | None], config: ImageConfig | SoundConfig, n_workers: int, seconds: float
    ) -> None:
        self.paths, self.config, self.n_workers, self.seconds = paths, config, n_workers, seconds
        # a heap, so that what a lost decoder leaves behind comes before what is new
        self.todo = [index for index, path in enumerate(paths) if path is not None]
        self.found: dict[int, Decoded | Unreadable] = {}
        self.workers: list[_Decoder] = []
        self.selector = selectors.DefaultSelector()

    def take(self, index: int) -> Decoded | Unreadable:
        """What is in the file of that index; those before it have been taken."""
        while index not in self.found:
            self._hand_out(index + AHEAD * self.n_workers)
            self._collect()
        return self.found.pop(index)

    def close(self) -> None:
        """End every decoder."""
        for worker in self.workers:
            worker.stop()
        self.selector.close()

    def _hand_out(self, end: int) -> None:
        while self.todo and self.todo[0] < end:
            request = json.dumps(str(self.paths[self.todo[0]])).encode() + b"\n"
            if len(request) > LONGEST_REQUEST:
                self.found[heapq.heappop(self.todo)] = Unreadable("File name too long")
                continue
            worker = self._least_busy()
            if len(worker.asked) == QUEUED or not worker.ask(self.todo[0], request):
                return
            heapq.heappop(self.todo)

    def _least_busy(self) -> _Decoder:
        if len(self.workers) < self.n_workers:
            worker = _Decoder(self.config)
            self.workers.append(worker)
            self.selector.register(worker.stdout, selectors.EVENT_READ, worker)
        return min(self.workers, key=lambda worker: len(worker.asked))

    def _collect(self) -> None:
        """Wait until a decoder says something, or has had its time."""
        busy = [worker for worker in self.workers if worker.asked or worker.deaf]
        if not busy:
            return
        patience = min(worker.deadline(self.seconds) for worker in busy) - time.monotonic()
        heard: list[_Decoder] = [key.data for key, _ in self.selector.select(min(max(0.0, patience), 3600.0))]
        for worker in heard:
            if worker.listen():
                self.found.update(worker.answers())
            else:
                self._lose(worker, None)
        for worker in busy:
            if worker not in heard and worker.deadline(self.seconds) <= time.monotonic():
                self._lose(worker, f"no answer within {self.seconds:g} s")

    def _lose(self, worker: _Decoder, reason: str | None) -> None:
        """End a decoder because of the file it is at; the others it was asked for are left to the rest."""
        self.selector.unregister(worker.stdout)
        self.workers.remove(worker)
        ended = worker.stop()
        if not worker.started:
            raise TransfuseError(f"no decoder could be started: {reason or ended}")
        if worker.asked:
            self.found[worker.asked.popleft()] = Unreadable(reason or f"its decoder {ended}")
        for index in worker.asked:
            heapq.heappush(self.todo, index)


class _Decoder:
    """A decoder process, and the files it has been asked for, the one it is at first."""

    def __init__(self, config: ImageConfig | SoundConfig) -> None:
        kind = next(kind for kind, (config_type, _) in KINDS.items() if isinstance(config, config_type))
        home = str(Path(transfuse.__file__).parents[1])
        # -P: the folder the program runs in may hold a json.py of its own
        command = [sys.executable, "-P", "-W", "ignore", "-c", PROGRAM, home, kind, config.to_json()]
        one_core = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        # a group of its own: Ctrl-C is for the program, which then ends its decoders
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | one_core, process_group=0
            )
        except OSError as error:
            raise TransfuseError(f"no decoder could be started: {error}") from error
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.asked: deque[int] = deque()
        self.started = self.deaf = False
        self._received = bytearray()
        self._heard_at = time.monotonic()

    def ask(self, index: int, request: bytes) -> bool:
        """Queue a file; False if it has ended, which is then no fault of that file."""
        try:
            self.stdin.write(request)
            self.stdin.flush()
        except BrokenPipeError:
            self.deaf = True
            return False
        if self.started and not self.asked:
            self._heard_at = time.monotonic()
        self.asked.append(index)
        return True

    def deadline(self, seconds: float) -> float:
        """When it must have said something, by `time.monotonic`."""
        return self._heard_at + (seconds if self.started else SECONDS_TO_START)

    def listen(self) -> bool:
        """Take in what it has written; False if it has ended."""
        piece = os.read(self.stdout.fileno(), 1 << 20)
        self._received += piece
        self._heard_at = time.monotonic()
        return bool(piece)

    def answers(self) -> Iterator[tuple[int, Decoded | Unreadable]]:
        """The files that are answered in full, and what is in them."""
        while (end := self._received.find(b"\n") + 1) > 0:
            header = json.loads(self._received[:end])
            size = math.prod(header["shape"]) * np.dtype(header["dtype"]).itemsize if "dtype" in header else 0
            if len(self._received) < end + size:
                return
            body = self._received[end : end + size]
            del self._received[: end + size]
            if self.started:
                yield self.asked.popleft(), _understood(header, body)
            self.started = True

    def stop(self) -> str:
        """End it, in whatever state it is; how it ended."""
        self.process.kill()
        for stream in (self.stdin, self.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        try:
            code = self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:  # in a read that the system does not interrupt
            return "does not end"
        return f"died of signal {-code}" if code < 0 else f"ended with exit status {code}"


def _understood(header: dict[str, Any], body: bytearray) -> Decoded | Unreadable:
    if "refused" in header:
        return Unreadable(header["refused"])
    array = np.frombuffer(body, header["dtype"]).reshape(header["shape"])
    return Sound(array, header["seconds"], header["seconds_used"]) if "seconds" in header else array
