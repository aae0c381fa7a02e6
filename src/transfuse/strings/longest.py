"""The longest window in which nothing occurs twice, of a string, any sequence, a stream, or each row of a matrix.

One linear pass, with memory for the alphabet: for each element the place after its last occurrence.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from transfuse.errors import ConfigError, DataError
from transfuse.strings.distinct import DistinctWindow

Normalisation = Literal["NFC", "NFD", "NFKC", "NFKD"]

SHORT = 1000
"""Elements below which compiled code does not pay for its loading."""

CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Distinct:
    """A window without a repeat: elements `start` to `end` - 1, and the window itself, of a text as text."""

    start: int
    end: int
    window: Any

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Reading:
    """How text becomes elements: code points or, `graphemes`, what a reader sees as one character; after `normalise`
    and with upper and lower case alike (`casefold`)."""

    graphemes: bool = False
    normalise: Normalisation | None = None
    casefold: bool = False

    def __post_init__(self) -> None:
        if self.normalise not in (None, "NFC", "NFD", "NFKC", "NFKD"):
            raise ConfigError(f"normalise={self.normalise!r} must be NFC, NFD, NFKC, NFKD or None")

    @property
    def is_plain(self) -> bool:
        """Whether text is its own code points."""
        return self == Reading()

    def elements(self, text: str) -> Sequence[str]:
        """The elements of a text."""
        if self.normalise is not None:
            text = unicodedata.normalize(self.normalise, text)
        if self.casefold:
            text = text.casefold()
        return graphemes(text) if self.graphemes else text


def longest_distinct(
    x: Iterable[Hashable],
    *,
    graphemes: bool = False,
    normalise: Normalisation | None = None,
    casefold: bool = False,
) -> Distinct:
    """The longest window of `x` in which nothing occurs twice, the first of several.

    `x` is a string, or any sequence, array or iterable of hashable elements (None is an element as others are).
    Of strings, `graphemes`, `normalise` and `casefold` say what an element is, and places count elements of the text
    after these changes. Raises DataError for an element that cannot be hashed.
    """
    elements = _elements(x, Reading(graphemes, normalise, casefold))
    start, length = _longest(elements)
    return _window(elements, isinstance(x, str), start, length)


def all_longest_distinct(
    x: Iterable[Hashable],
    *,
    graphemes: bool = False,
    normalise: Normalisation | None = None,
    casefold: bool = False,
) -> list[Distinct]:
    """Every window that is as long as the longest, from left to right; otherwise as `longest_distinct`."""
    elements = _elements(x, Reading(graphemes, normalise, casefold))
    _, length = _longest(elements)
    if not length:
        return [_window(elements, isinstance(x, str), 0, 0)]
    window = DistinctWindow()
    ends = [i for i, element in enumerate(elements) if window.push(_hashable(element, i)) == length]
    return [_window(elements, isinstance(x, str), end + 1 - length, length) for end in ends]


def longest_distinct_rows(ids_BT: Any, keep_BT: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of a matrix of whole numbers: how long its longest window without a repeat is, and the column where
    it begins, (B,) each. What `keep_BT` leaves out (False) is passed over as if it were not there."""
    from transfuse.strings.scan import scan_rows

    ids = np.asarray(ids_BT)
    keep = np.ones(ids.shape, bool) if keep_BT is None else np.asarray(keep_BT, bool)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or keep.shape != ids.shape:
        raise DataError(
            f"ids are {ids.dtype} of shape {ids.shape}, keep has shape {keep.shape}; "
            "expected two matrices of one shape, of whole numbers and of booleans"
        )
    codes, n_codes = _coded(ids.ravel())
    return cast(tuple[np.ndarray, np.ndarray], scan_rows(codes.reshape(ids.shape), keep, n_codes))


class DistinctStream:
    """The longest window of a text that comes in pieces; what is kept is as long as a window at most."""

    def __init__(self, reading: Reading | None = None) -> None:
        self._reading = reading or Reading()
        self._codes: dict[str, int] = {}
        self._last = np.full(CODE_POINTS if self._reading.is_plain else SHORT, -1, np.int64)
        self._state = np.zeros(4, np.int64)
        self._waiting = ""
        self._tail: list[str] = []
        self._best: list[str] = []

    def feed(self, text: str) -> None:
        """Read on."""
        if self._reading.is_plain:
            self._scan(text)
            return
        read = self._waiting + text
        if self._reading.normalise in ("NFKC", "NFKD"):
            # what is a character by itself may join the one before it once it is taken apart
            read = unicodedata.normalize("NFKD", read)
        # a mark that belongs to the last character may still come
        whole = graphemes(read)
        self._waiting = whole[-1] if whole else ""
        self._scan(self._reading.elements("".join(whole[:-1])))

    def result(self) -> Distinct:
        """The first longest window of all that was read; nothing may follow."""
        self._scan(self._reading.elements(self._waiting))
        self._waiting = ""
        length, start = int(self._state[2]), int(self._state[3])
        return Distinct(start, start + length, "".join(self._best))

    def _scan(self, elements: Sequence[str]) -> None:
        from transfuse.strings.scan import scan

        if not len(elements):
            return
        if self._reading.is_plain:
            codes = _code_points(str(elements))
        else:
            codes = np.array([self._codes.setdefault(one, len(self._codes)) for one in elements])
            if len(self._codes) > len(self._last):
                grown = np.full(2 * len(self._codes), -1, np.int64)
                grown[: len(self._last)] = self._last
                self._last = grown
        first = int(self._state[0])  # where the tail begins
        before = int(self._state[2])
        scan(codes, self._last, self._state)
        start, length, best = int(self._state[0]), int(self._state[2]), int(self._state[3])
        n_tail = len(self._tail)

        def part(a: int, b: int) -> list[str]:
            """Elements of the tail and the piece behind it."""
            return [*self._tail[a:b], *elements[max(0, a - n_tail) : max(0, b - n_tail)]]

        if length > before:
            self._best = part(best - first, best - first + length)
        self._tail = part(start - first, n_tail + len(elements))


def graphemes(text: str) -> list[str]:
    """What a reader sees as one character each (Unicode's extended grapheme clusters)."""
    import regex

    found: list[str] = regex.findall(r"\X", text)
    return found


def _elements(x: Iterable[Hashable], reading: Reading) -> Any:
    if isinstance(x, str):
        return reading.elements(x)
    if not reading.is_plain:
        raise ConfigError("graphemes, normalise and casefold are for strings")
    if isinstance(x, bytes | bytearray):
        return np.frombuffer(bytes(x), np.uint8)
    if hasattr(x, "__array__"):
        x = np.asarray(x)  # a tensor, a column
    if isinstance(x, np.ndarray):
        if x.ndim != 1:
            raise DataError(f"an array of {x.ndim} dimensions; expected one")
        return x if x.dtype.kind in "iu" else x.tolist()
    return x if isinstance(x, list | tuple) else list(x)


def _longest(elements: Any) -> tuple[int, int]:
    """Where the longest window begins, and its length."""
    coded = isinstance(elements, str | np.ndarray)
    if len(elements) >= SHORT and coded:
        from transfuse.strings.scan import scan

        codes, n_codes = _coded(_code_points(elements) if isinstance(elements, str) else elements)
        state = np.zeros(4, np.int64)
        scan(codes, np.full(n_codes, -1, np.int64), state)
        return int(state[3]), int(state[2])
    window = DistinctWindow()
    best_start = best = 0
    for place, element in enumerate(elements):
        if window.push(_hashable(element, place)) > best:
            best_start, best = window.start, len(window)
    return best_start, best


def _hashable(element: Any, place: int) -> Hashable:
    try:
        hash(element)
    except TypeError:
        raise DataError(f"element {place} is {type(element).__name__} {element!r}, which cannot be hashed") from None
    return cast(Hashable, element)


def _code_points(text: str) -> np.ndarray:
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _coded(numbers: np.ndarray) -> tuple[np.ndarray, int]:
    """Whole numbers as others from 0, and below what; their own where a table of them is not much larger than they."""
    if not len(numbers):
        return numbers, 1
    if numbers.dtype == np.uint8:
        return numbers, 256
    low, high = int(numbers.min()), int(numbers.max())
    if low >= 0 and high < max(CODE_POINTS, 4 * len(numbers)):
        return numbers, high + 1
    codes: dict[int, int] = {}
    return np.array([codes.setdefault(one, len(codes)) for one in numbers.tolist()]), len(codes)


def _window(elements: Any, is_text: bool, start: int, length: int) -> Distinct:
    part = elements[start : start + length]
    return Distinct(
        start,
        start + length,
        "".join(part) if is_text else part.tolist() if isinstance(part, np.ndarray) else list(part),
    )
