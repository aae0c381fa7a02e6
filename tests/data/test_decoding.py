"""Files decoded in other processes: the same arrays in the same order, whatever a file does to its decoder."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import transfuse
from transfuse.data import decoder, decoding
from transfuse.data.decoding import Unreadable, decode
from transfuse.data.images import ImageConfig, read_image
from transfuse.data.sounds import Sound, SoundConfig, read_sound
from transfuse.errors import ConfigError, TransfuseError

RNG = np.random.default_rng(0)
SMALL = ImageConfig(size=11)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(41)]
    for path in paths:
        Image.fromarray(RNG.integers(0, 256, (11, 11, 3), np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that takes seconds to decode: a bitmap of nine million runs of one pixel."""
    path, side = tmp_path_factory.mktemp("slow") / "slow.bmp", 3_000
    runs = (b"\1\0" * side + b"\0\0") * side
    palette = bytes(1024)
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    path.write_bytes(struct.pack("<2sIHHI", b"BM", start + len(runs), 0, 0, start) + header + palette + runs)
    return path


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    assert decoders_of(os.getpid()) == []


def decoders_of(parent: int) -> list[int]:
    """Process ids of the decoders that a process has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            its_parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):  # it has just ended
            continue
        if decoder.__name__.encode() in command and its_parent == parent:
            found.append(int(entry.name))
    return found


def running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def eventually(condition: Any, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def assert_pictures(found: list[Any], paths: list[Path], config: ImageConfig = SMALL) -> None:
    assert len(found) == len(paths)
    for array, path in zip(found, paths, strict=True):
        np.testing.assert_array_equal(array, read_image(path, config))


# what comes out


@pytest.mark.parametrize("n_workers", [None, 1])
def test_pictures_come_in_the_order_of_their_paths(pictures: list[Path], n_workers: int | None) -> None:
    found = list(decode(pictures, SMALL, n_workers=n_workers))
    assert_pictures(found, pictures)
    found[0][:] = 0  # an array of one's own


@pytest.mark.parametrize("seconds", [1e9, float("inf")])
def test_any_patience_will_do(pictures: list[Path], seconds: float) -> None:
    assert_pictures(list(decode(pictures[:1], SMALL, seconds=seconds)), pictures[:1])


def test_what_is_larger_than_a_pipe_comes_whole(pictures: list[Path]) -> None:
    config = ImageConfig(size=257)
    assert_pictures(list(decode(pictures[:7], config, n_workers=2)), pictures[:7], config)


def test_sounds_keep_their_lengths(tmp_path: Path) -> None:
    config = SoundConfig(max_seconds=0.75)
    paths = [tmp_path / f"{number}.wav" for number in range(5)]
    for number, path in enumerate(paths):
        soundfile.write(path, RNG.normal(size=1 + 7919 * number).clip(-1, 1), 16_000)
    for sound, path in zip(decode(paths, config, n_workers=1), paths, strict=True):
        expected = read_sound(path, config)
        assert isinstance(sound, Sound)
        np.testing.assert_array_equal(sound.frames_TM, expected.frames_TM)
        assert (sound.seconds, sound.seconds_used) == (expected.seconds, expected.seconds_used)


def test_no_path_gives_none_and_a_bad_file_its_reason(tmp_path: Path, pictures: list[Path]) -> None:
    empty, missing = tmp_path / "empty.png", tmp_path / "missing.png"
    empty.touch()
    paths = [None, pictures[0], missing, None, empty, pictures[1], tmp_path / ("a" * 9000), None]
    found = list(decode(paths, SMALL, n_workers=1))
    assert [found[place] for place in (0, 3, 7)] == [None] * 3
    assert [found[place] for place in (2, 4, 6)] == [
        *(Unreadable("No such file or directory"), Unreadable("zero bytes"), Unreadable("File name too long"))
    ]
    assert_pictures([found[1], found[5]], pictures[:2])


def test_nothing_to_decode_starts_nothing() -> None:
    assert list(decode([], SMALL)) == []
    assert list(decode([None, None], SMALL)) == [None, None]


@pytest.mark.parametrize("name", [b"caf\xe9.png", "雪\n☃ \"'.png".encode()])
def test_names_that_are_not_plain(tmp_path: Path, pictures: list[Path], name: bytes) -> None:
    path = pictures[0].rename(tmp_path / os.fsdecode(name))
    assert_pictures(list(decode([path], SMALL)), [path])


def test_modules_of_the_folder_one_is_in_do_not_reach_the_decoders(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    assert_pictures(list(decode(pictures[:1], SMALL)), pictures[:1])


def test_decoders_are_of_the_package_that_asks(tmp_path: Path, pictures: list[Path]) -> None:
    shutil.copytree(Path(transfuse.__file__).parent, tmp_path / "transfuse")
    with (tmp_path / "transfuse" / "data" / "decoder.py").open("a") as source:
        source.write("\n\ndef main():\n    sys.exit(7)\n")
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from transfuse.data.decoding import decode; from transfuse.data.images import ImageConfig\n"
        "next(decode([Path(sys.argv[2])], ImageConfig()))"
    )
    result = subprocess.run([sys.executable, "-c", program, tmp_path, pictures[0]], capture_output=True, text=True)
    assert result.stderr.endswith("TransfuseError: no decoder could be started: ended with exit status 7\n")


# files that end or stop their decoder


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_decoder_that_dies_costs_one_file(pictures: list[Path], slow: Path, signal_number: int) -> None:
    paths = [pictures[0], slow, *pictures[1:]]
    results = decode(paths, SMALL, n_workers=1)
    found = [next(results)]
    [pid] = decoders_of(os.getpid())
    os.kill(pid, signal_number)
    found += results
    assert found[1] == Unreadable(f"its decoder died of signal {signal_number}")
    assert_pictures([found[0], *found[2:]], pictures)


def test_a_decoder_that_ends_says_with_what(pictures: list[Path], slow: Path) -> None:
    results = decode([pictures[0], slow], SMALL, n_workers=1)
    next(results)
    os.kill(decoders_of(os.getpid())[0], signal.SIGTERM)
    assert list(results) == [Unreadable("its decoder died of signal 15")]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_decoder_that_does_not_answer_costs_one_file(pictures: list[Path], slow: Path, stopped: bool) -> None:
    results = decode([pictures[0], slow, *pictures[1:]], SMALL, n_workers=1, seconds=0.8)
    found = [next(results)]
    if stopped:
        os.kill(decoders_of(os.getpid())[0], signal.SIGSTOP)
    found += results
    assert found[1] == Unreadable("no answer within 0.8 s")
    assert_pictures([found[0], *found[2:]], pictures)


def test_while_one_decoder_hangs_the_others_go_on(pictures: list[Path], slow: Path) -> None:
    results = decode([slow, *pictures], SMALL, n_workers=2, seconds=0.8)
    found = list(results)
    assert found[0] == Unreadable("no answer within 0.8 s")
    assert_pictures(found[1:], pictures)


def test_texts_in_place_of_names_do_not_fill_the_pipe_to_a_decoder_that_hangs(pictures: list[Path], slow: Path) -> None:
    paths = [slow, *[Path("a" * 100_000)] * 5, pictures[0]]
    found = list(decode(paths, SMALL, n_workers=1, seconds=0.8))
    assert found[:6] == [Unreadable("no answer within 0.8 s"), *[Unreadable("File name too long")] * 5]
    assert_pictures(found[6:], pictures[:1])


def test_every_file_may_be_a_bad_one(pictures: list[Path], slow: Path) -> None:
    found = list(decode([slow, slow, pictures[0]], SMALL, n_workers=2, seconds=0.8))
    assert [isinstance(result, Unreadable) for result in found] == [True, True, False]


def test_time_spent_between_files_is_not_the_decoders(pictures: list[Path]) -> None:
    config = ImageConfig(size=131)  # the answers to one round of questions do not fit into the pipe
    results = decode(pictures, config, n_workers=1, seconds=1.0)
    found = []
    for count, result in enumerate(results):
        found.append(result)
        if count == 3:
            time.sleep(1.2)
    assert_pictures(found, pictures, config)


def test_a_decoder_that_dies_while_it_waits_costs_nothing(pictures: list[Path]) -> None:
    results = decode(pictures, SMALL, n_workers=1)
    found = [next(results)]
    time.sleep(0.7)  # what it was asked for is answered by now, and lies in the pipe
    [pid] = decoders_of(os.getpid())
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z")
    assert_pictures([*found, *results], pictures)


def test_a_decoder_that_cannot_be_started_is_no_fault_of_the_file(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TransfuseError, match="no decoder could be started: ended with exit status 1"):
        next(decode(pictures, SMALL))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TransfuseError, match=r"no decoder could be started: .*No such file"):
        next(decode(pictures, SMALL))


def test_numbers_out_of_range_are_refused_at_the_call(pictures: list[Path]) -> None:
    with pytest.raises(ConfigError, match="n_workers=0 must be at least 1"):
        decode(pictures, SMALL, n_workers=0)
    with pytest.raises(ConfigError, match="seconds=nan must be greater than 0"):
        decode(pictures, SMALL, seconds=float("nan"))
    with pytest.raises(ConfigError, match="seconds=0 must be greater than 0"):
        decode(pictures, SMALL, seconds=0)


# what is left behind


def test_files_are_not_decoded_far_ahead(
    tmp_path: Path, pictures: list[Path], slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "AHEAD", 3)
    results = decode([pictures[0], slow, *pictures[1:]], SMALL, n_workers=2, seconds=1.0)
    found = [next(results), next(results)]  # while one decoder was at the slow file, the other had a second
    pictures[40].write_bytes(pictures[0].read_bytes())
    found += results
    assert found[1] == Unreadable("no answer within 1 s")
    assert_pictures([found[0], *found[2:]], pictures)


def test_leaving_early_ends_the_decoders(pictures: list[Path], slow: Path) -> None:
    results = decode([pictures[0], slow, *pictures[1:]], SMALL, n_workers=2)
    next(results)
    pids = decoders_of(os.getpid())
    assert len(pids) == 2
    results.close()  # type: ignore[attr-defined]
    assert running(pids) == []


def in_another_process(paths: list[Path], then: str) -> subprocess.Popen[str]:
    """A program that decodes, and says when it has a file."""
    program = (
        "import signal, sys, time; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell's background jobs ignore
        "from transfuse.data.decoding import decode; from transfuse.data.images import ImageConfig\n"
        "for result in decode([Path(name) for name in sys.argv[1:]], ImageConfig(), n_workers=2):\n"
        f"    print('one', flush=True); {then}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


@pytest.mark.parametrize("starting", [True, False])
def test_an_interrupted_program_ends_its_decoders(pictures: list[Path], slow: Path, starting: bool) -> None:
    with in_another_process([pictures[0], slow], then="pass") as program:
        if starting:
            assert eventually(lambda: len(decoders_of(program.pid)) == 2)
        else:
            assert program.stdout is not None and program.stdout.readline() == "one\n"
        pids = decoders_of(program.pid)
        assert len(pids) == 2
        os.killpg(program.pid, signal.SIGINT)  # as Ctrl-C does
        _, errors = program.communicate()
    assert errors.rstrip().endswith("KeyboardInterrupt") and errors.count("Traceback") == 1
    assert running(pids) == []


def test_decoders_end_with_a_program_that_is_killed(pictures: list[Path]) -> None:
    with in_another_process(pictures[:2], then="time.sleep(60)") as program:
        assert program.stdout is not None and program.stdout.readline() == "one\n"
        pids = decoders_of(program.pid)
        assert len(pids) == 2
        program.kill()
    assert eventually(lambda: running(pids) == [])


# the decoder itself


def test_a_decoder_imports_neither_torch_nor_pandas() -> None:
    probe = "import sys, transfuse.data.decoder; assert not {'torch', 'pandas', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True)


def requests(paths: list[Path]) -> bytes:
    return b"".join(json.dumps(str(path)).encode() + b"\n" for path in paths)


def test_a_decoder_ends_with_its_input(pictures: list[Path]) -> None:
    command = [sys.executable, "-m", decoder.__name__, "image", SMALL.to_json()]
    replies = io.BytesIO(subprocess.run(command, input=requests(pictures[:2]), capture_output=True, check=True).stdout)
    assert json.loads(replies.readline()) == {}
    for path in pictures[:2]:
        assert json.loads(replies.readline()) == {"dtype": "uint8", "shape": [3, 11, 11]}
        assert replies.read(363) == read_image(path, SMALL).tobytes()
    assert replies.read() == b""


def test_what_libraries_print_does_not_reach_the_answers(pictures: list[Path]) -> None:
    program = (
        "import os\n"
        "from transfuse.data import decoder, images\n"
        "def noisy(path, config):\n"
        "    print('from Python', flush=True); os.write(1, b'from C'); os.write(2, b'from C')\n"
        "    return images.read_image(path, config)\n"
        "decoder.KINDS['image'] = (images.ImageConfig, noisy)\n"
        "decoder.main()"
    )
    command = [sys.executable, "-c", program, "image", SMALL.to_json()]
    result = subprocess.run(command, input=requests(pictures[:2]), capture_output=True, check=True)
    assert b"from" not in result.stdout and result.stderr == b""
    assert result.stdout.count(b"dtype") == 2


def test_whatever_a_reader_raises_is_an_answer(pictures: list[Path]) -> None:
    program = (
        "from transfuse.data import decoder, images\n"
        "def broken(path, config): raise RuntimeError\n"
        "decoder.KINDS['image'] = (images.ImageConfig, broken)\n"
        "decoder.main()"
    )
    command = [sys.executable, "-c", program, "image", SMALL.to_json()]
    result = subprocess.run(command, input=requests(pictures[:2]), capture_output=True, check=True)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [{}, *[{"refused": "RuntimeError"}] * 2]
