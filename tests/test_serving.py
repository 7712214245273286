# SPDX-License-Identifier: Apache-2.0
"""Boards that run the images that a host sends: QEMU's serial port on a socket, and the host program's terminal."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import socket
import subprocess
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.board import client, protocol
from caffe_to_cmsis_nn.board.protocol import decode_frame, encode_frame
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network import test_images
from caffe_to_cmsis_nn.pipeline import board
from caffe_to_cmsis_nn.plan import lowering
from caffe_to_cmsis_nn.target import OWN, Q7, S8, Core, Library, Rounding, Target
from tests import small
from tests.generated import arm_compilers, flip_first_value, generate, make, network, predicted, stored_images
from tests.support import FULL_SIZE, run, tool

FAULTS = 0.002, 0.001  # shares of bytes with a bit flipped, and of bytes lost, each way
LENET_IMAGES, FAULTY_IMAGES, SMALL_IMAGES = (250, 100, small.IMAGES) if FULL_SIZE else (5, 4, 3)
BOARDS = {"cortex-m4": Core.DSP, "cortex-m55": Core.MVE}


@pytest.fixture(scope="module")
def small_pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return small.save(small.quantized(folder), folder / "small.pkl")


# --- frames -----------------------------------------------------------------------------------------------------------


@given(st.one_of(st.binary(min_size=1, max_size=80), st.lists(st.sampled_from([0, 1, 255]), min_size=1).map(bytes)))
def test_frames_hold_any_message_between_two_zeros(message: bytes) -> None:
    frame = encode_frame(message[:80])
    assert frame[0] == frame[-1] == 0
    assert 0 not in frame[1:-1]
    assert decode_frame(frame[1:-1]) == message[:80]


def test_a_frame_is_the_documented_one() -> None:
    """CRC-32 of "123456789" is 0xcbf43926; a block for each zero, its length plus 1 before it."""
    assert encode_frame(b"123456789") == b"\0\x0e123456789\x26\x39\xf4\xcb\0"
    assert encode_frame(b"\0\x07\0")[:4] == b"\0\x01\x02\x07"


@given(st.binary(min_size=1, max_size=80), st.data())
def test_damaged_frames_are_seen(message: bytes, data: st.DataObject) -> None:
    frame = bytearray(encode_frame(message)[1:-1])
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    assert decode_frame(bytes(frame)) is None
    assert decode_frame(bytes(frame[:at] + frame[at + 1 :])) in (None, message)


@given(st.binary(max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    assert decode_frame(noise.replace(b"\0", b"")) is None


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("library", protocol.LIBRARIES, ids=str)
def test_facts_and_fingerprints_tell_networks_apart(library: Library, rounding: Rounding, tmp_path: Path) -> None:
    if rounding not in library.roundings:
        return
    target = Target(Core.PLAIN, rounding, library)
    facts = protocol.Facts(target, False, True, 243, 6, 12)
    assert protocol.Facts.unpack(facts.pack()) == facts
    with pytest.raises(UserError, match="of another version of this tool"):
        protocol.Facts.unpack(b"\x09" + facts.pack()[1:])
    one = small.quantized(tmp_path, target)
    assert protocol.fingerprint(one) == protocol.fingerprint(small.quantized(tmp_path, target))
    assert protocol.fingerprint(one) != protocol.fingerprint(
        small.quantized(tmp_path, Target(Core.DSP, rounding, library))
    )
    one.layers[1].integers.weights[0, 0, 0, 0] ^= 1
    assert protocol.fingerprint(one) != protocol.fingerprint(small.quantized(tmp_path, target))


# --- boards -----------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        number: int = s.getsockname()[1]
        return number


def reachable(port: int) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError("no board")


@contextlib.contextmanager
def emulated(folder: Path, core: str = "cortex-m4") -> Iterator[int]:
    """A board that serves; the TCP port that its serial port is at."""
    make(folder, f"build-{core}/network.elf", f"CORE={core}")
    port = free_port()
    command = [tool("make"), "-s", "run", f"CORE={core}", f"PORT={port}"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            reachable(port)
            yield port
        finally:
            os.killpg(process.pid, 15)


@contextlib.contextmanager
def on_this_computer(folder: Path) -> Iterator[str]:
    """The host program, and the terminal that it serves."""
    make(folder, "network")
    with subprocess.Popen(["./network", "serve"], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


class Faults:
    """Damages and loses bytes on their way."""

    def __init__(self, flipped: float, dropped: float) -> None:
        self.flipped, self.dropped, self.random = flipped, dropped, random.Random(1)

    def __call__(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            chance = self.random.random()
            if chance < self.flipped:
                out.append(byte ^ 1 << self.random.randrange(8))
            elif chance >= self.flipped + self.dropped:
                out.append(byte)
        return bytes(out)


@contextlib.contextmanager
def between(read: Callable[[], bytes], write: Callable[[bytes], object], faults: Faults) -> Iterator[int]:
    """A TCP port to a board, by a bad line."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                host = server.accept()[0]
                host.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

                def back() -> None:
                    with contextlib.suppress(OSError):
                        while data := read():
                            host.sendall(faults(data))

                threading.Thread(target=back, daemon=True).start()
                while data := host.recv(4096):
                    write(faults(data))

        line = multiprocessing.get_context("fork").Process(target=serve, daemon=True)
        line.start()
        try:
            yield server.getsockname()[1]
        finally:
            line.kill()


@contextlib.contextmanager
def bad_line(port: int, faults: Faults) -> Iterator[int]:
    with socket.create_connection(("127.0.0.1", port)) as board:
        board.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with between(lambda: board.recv(4096), board.sendall, faults) as own:
            yield own


@contextlib.contextmanager
def bad_terminal(path: str, faults: Faults) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(descriptor)
    try:
        with between(lambda: os.read(descriptor, 4096), lambda data: os.write(descriptor, data), faults) as own:
            yield own
    finally:
        os.close(descriptor)


def evaluate(pickle: Path, port: str | int, count: int) -> int:
    url = port if isinstance(port, str) else f"socket://127.0.0.1:{port}"
    return nn_quantizer.main(["--eval", str(pickle), "--board", url, "--board_images", str(count)])


def said(count: int, accuracy: float) -> str:
    return (
        f"Accuracy on the board: {accuracy:.2f} % ({count} images, dsp core, nearest rounding), "
        f"predicted {accuracy:.2f} %; {count} images with every logit as predicted, "
    )


def accuracy(pickle: Path, count: int) -> float:
    quantized = network(pickle)
    path = files.find(quantized.dataset, pickle.parent, "the LMDB")
    images, labels = test_images.open_images(quantized, path, count)
    return float(np.mean(predicted(quantized, images).argmax(axis=1) == labels) * 100)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are repeated soon."""
    monkeypatch.setattr(client, "PATIENCE", 0.1)


def test_an_emulated_board_runs_lenets_images(
    lenet_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = generate(lenet_pickle, tmp_path, "--target", "mps2", "--serve")
    with emulated(folder) as port:
        capsys.readouterr()
        assert evaluate(lenet_pickle, port, LENET_IMAGES) == 0
    assert capsys.readouterr().out.startswith(said(LENET_IMAGES, accuracy(lenet_pickle, LENET_IMAGES)))


@pytest.mark.usefixtures("impatient")
def test_a_bad_line_changes_nothing(lenet_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = generate(lenet_pickle, tmp_path, "--target", "host", "--serve")
    with on_this_computer(folder) as terminal, bad_terminal(terminal, Faults(*FAULTS)) as port:
        capsys.readouterr()
        assert evaluate(lenet_pickle, port, FAULTY_IMAGES) == 0
    out = capsys.readouterr().out
    assert out.startswith(said(FAULTY_IMAGES, accuracy(lenet_pickle, FAULTY_IMAGES)))
    assert "requests repeated" in out


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("core", "library"),
    [
        ("cortex-m4", Q7),
        ("cortex-m55", S8),
        *(pytest.param("cortex-m4", library, marks=pytest.mark.slow) for library in (S8, OWN)),
        *(pytest.param("cortex-m55", library, marks=pytest.mark.slow) for library in (Q7, OWN)),
    ],
    ids=str,
)
def test_emulated_boards_on_a_bad_line(
    core: str,
    library: Library,
    small_pickle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From one pickle for any library and core: the board says which it has. Times are printed where it has them."""
    kernels = ("--kernels", "own") if library is OWN else ("--api", library.name)
    flags = ("--core", BOARDS[core].value, *kernels, "--ram", "least", "--name", "kws")
    folder = generate(small_pickle, tmp_path, "--target", "mps2", "--serve", "--profile", *flags)
    with emulated(folder, core) as port, bad_line(port, Faults(*FAULTS)) as bad:
        capsys.readouterr()
        assert evaluate(small_pickle, bad, SMALL_IMAGES) == 0
    out = capsys.readouterr().out
    assert f"; {SMALL_IMAGES} images with every logit as predicted" in out
    assert {line.split()[0] for line in out.splitlines()} >= {"data", "conv1", "ip2"}


def test_the_first_layer_that_differs_is_named(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = generate(small_pickle, tmp_path, "--target", "host", "--serve")
    flip_first_value(folder / "weights.h", "TALL_WT")
    with on_this_computer(folder) as terminal:
        assert evaluate(small_pickle, terminal, small.IMAGES) == 2
    captured = capsys.readouterr()
    assert "Accuracy on the board: " in captured.out
    assert captured.err.endswith("image 0: layer tall is the first that differs from the prediction\n")


def test_another_network_is_seen(small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the beginning."""
    other = small.save(
        small.quantized(tmp_path, layers=small.LAYERS.replace("num_output: 10", "num_output: 9")), tmp_path / "o.pkl"
    )
    folder = generate(other, tmp_path / "code", "--target", "host", "--serve")
    with on_this_computer(folder) as terminal:
        assert evaluate(small_pickle, terminal, 3) == 2
    assert "the board runs another network than " in capsys.readouterr().err


def test_a_board_that_begins_anew_goes_on(small_pickle: Path, tmp_path: Path) -> None:
    """Another process takes its place in the middle; what it says of it, and the results."""
    quantized = network(small_pickle)
    images = stored_images(quantized, small_pickle, 6)
    pixels = [np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes() for image in images]
    folder = generate(small_pickle, tmp_path / "code", "--target", "host", "--serve")
    link, notes = tmp_path / "port", list[str]()

    def open_port() -> client.Port:
        import serial

        try:
            port: client.Port = serial.serial_for_url(str(link), timeout=0.01)
        except OSError as error:
            raise UserError(str(error)) from error
        return port

    logits = []
    for begin in (0, 3):
        with on_this_computer(folder) as terminal:
            link.unlink(missing_ok=True)
            link.symlink_to(terminal)
            if begin == 0:
                board = client.Board(open_port, notes.append)
                board.identify()
            for i in range(begin, begin + 3):
                logits.append(np.frombuffer(board.run(i, pixels[i], b"L", 6), np.int8))
    board.close()
    assert len(notes) == 1
    assert "the board restarted" in notes[0]
    np.testing.assert_array_equal(logits, predicted(quantized, images))


def test_a_board_that_is_not_there(
    small_pickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(small_pickle, str(tmp_path / "ttyNONE"), 1) == 2
    assert "cannot open the board's port '" in capsys.readouterr().err
    monkeypatch.setattr(client, "GIVE_UP", 1.0)
    monkeypatch.setattr(client, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert evaluate(small_pickle, silent.getsockname()[1], 1) == 2
    assert capsys.readouterr().err.endswith("the board has not answered for 1 s\n")


# --- hostile boards ---------------------------------------------------------------------------------------------------

PIXELS, CLASSES, FINGERPRINT = bytes(range(243)), 100, 0xC0FFEE
SOUND = protocol.Facts(Target(), False, False, len(PIXELS), CLASSES, 12)
Message = tuple[int, int, int, int, int, int, bytes]  # an answer's fields and data


class FakePort:
    """A board that answers as it should, but for what `change` makes of an answer; a chunk of pixels gets lost once."""

    def __init__(self, change: Callable[[Message], Message | bytes | None]) -> None:
        self.change, self.sent, self.there, self.lost = change, bytearray(), set[int](), {2}

    def write(self, data: bytes) -> None:
        for frame in filter(None, data.split(b"\0")):
            message = decode_frame(frame)
            assert message
            kind, tag, image, index = protocol.REQUEST.unpack(message[: protocol.REQUEST.size])
            if kind == ord("P"):
                self.there |= {index} - self.lost
                self.lost -= {index}
                continue
            chunks = -(-len(PIXELS) // protocol.CHUNK)
            if kind == ord("I"):
                answer = kind, tag, image, index, FINGERPRINT, 1, SOUND.pack()
            elif len(self.there) < chunks:
                first = min({*range(chunks)} - self.there)
                answer = ord("M"), tag, image, first, FINGERPRINT, 1, b"\1"
            else:
                answer = kind, tag, image, index, FINGERPRINT, 1, bytes(CLASSES)[64 * index :][:64]
            changed = self.change(answer)
            if isinstance(changed, tuple):
                changed = encode_frame(protocol.ANSWER.pack(*changed[:6]) + changed[6])
            self.sent += changed or b""

    def read(self, size: int = 1) -> bytes:
        if not self.sent:
            time.sleep(0.001)
        return bytes([self.sent.pop(0)]) if self.sent else b""

    def close(self) -> None:
        pass


def field(number: int, value: object, kinds: str = "ILM") -> Callable[[Message], Message]:
    """Sets one field of the answers of some kinds."""

    def change(answer: Message) -> Message:
        answers = [*answer]
        answers[number] = value(answer[number]) if callable(value) else value
        return tuple(answers) if chr(answer[0]) in kinds else answer  # type: ignore[return-value]

    return change


def fact(number: int, value: int) -> Callable[[Message], Message]:
    return field(6, lambda data: data[:number] + bytes([value]) + data[number + 1 :], "I")


HOSTILE: dict[str, tuple[Callable[[Message], Message | bytes | None], str]] = {
    "silent": (lambda _: None, "the board has not answered for 0 s"),
    "noise": (lambda _: bytes(range(1, 256)) * 40, "the board has not answered for 0 s"),
    "zeros": (lambda _: bytes(1000), "the board has not answered for 0 s"),
    "answers to other requests": (field(1, lambda tag: tag ^ 1), "the board has not answered for 0 s"),
    "pixels missing for ever": (
        lambda answer: (ord("M"), *answer[1:3], 0, *answer[4:6], b"\1") if answer[0] == ord("L") else answer,
        "the board still lacks pixels of image 7, which were sent 60 times",
    ),
    "no pixels missing": (field(6, b"\0", "M"), "the board answered request L, image 7, index 0, with kind b'M'"),
    "no bits": (field(6, b"", "M"), "the board answered request L"),
    "many bits": (field(6, b"\xff" * 65, "M"), "the board answered request L"),
    "bits beyond the image": (field(6, b"\xff" * 64, "M"), "the board answered request L"),
    "a chunk beyond the image": (field(3, 65535, "M"), "the board answered request L"),
    "another image": (field(2, 8, "LM"), "the board answered request L"),
    "another image's facts": (field(2, 8, "I"), "the board answered request I"),
    "another index": (field(3, 1), "the board answered request"),
    "an unknown kind": (field(0, ord("?")), "the board answered request I with kind b'?'"),
    "results of another kind": (field(0, ord("C"), "L"), "the board answered request L"),
    "a short result": (field(6, lambda data: data[:-1], "L"), "the board answered request L"),
    "a long result": (field(6, lambda data: data + b"x", "L"), "the board answered request L"),
    "no result": (field(6, b"", "L"), "the board answered request L"),
    "another network": (field(4, 1, "L"), "the board runs another network now"),
    "refused": (field(0, ord("E"), "L"), "a kernel on the board refused its arguments"),
    "another version": (fact(0, 9), "of another version of this tool"),
    "short facts": (field(6, b"\1", "I"), "of another version of this tool"),
    "an unknown library": (fact(1, 3), "names a library, core or rounding that does not exist"),
    "an unknown core": (fact(2, 255), "names a library, core or rounding that does not exist"),
    "an unknown rounding": (fact(3, 2), "names a library, core or rounding that does not exist"),
    "an odd flag": (fact(5, 2), "names a library, core or rounding that does not exist"),
    "s8 that truncates": (field(6, lambda data: bytes([1, 1, 0, 1]) + data[4:], "I"), "truncate rounding: the s8"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_board_ends_in_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GIVE_UP", 0.2)
    monkeypatch.setattr(client, "PATIENCE", 0.02)
    change, sentence = HOSTILE[name]
    port, began = FakePort(change), time.monotonic()
    board = client.Board(lambda: port, lambda _: None)
    with pytest.raises(UserError, match=re.escape(sentence)):
        assert board.identify() == SOUND
        board.run(7, PIXELS, b"L", CLASSES)
    assert time.monotonic() - began < 2


def test_a_sound_board_and_one_that_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels are sent again to a board that lost them in the middle of the results."""
    notes, port = list[str](), FakePort(lambda answer: answer)
    board = client.Board(lambda: port, notes.append)
    board.identify()
    assert board.run(7, PIXELS, b"L", CLASSES) == bytes(CLASSES)
    assert (notes, board.repeated) == ([], 0)
    lost = iter([True])

    def restart(answer: Message) -> Message:
        if answer[3] == 1 and next(lost, False):
            port.there.clear()
            return (ord("M"), *answer[1:3], 0, FINGERPRINT, 0, b"\1")
        return answer

    port.change = restart
    assert board.run(8, PIXELS, b"L", CLASSES) == bytes(CLASSES)
    assert len(notes) == 1


@pytest.mark.parametrize("sizes", [(242, 6, 12), (243, 7, 12), (243, 6, 13), (243, 6, 2**32 - 1), (243, 0, 12)])
def test_the_boards_sizes_must_be_the_networks(
    sizes: tuple[int, int, int], small_pickle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program with the right fingerprint, and other sizes."""
    own = protocol.fingerprint(lowering.fuse(network(small_pickle)))
    lie = protocol.Facts(Target(), False, True, *sizes)
    port = FakePort(lambda answer: (*answer[:4], own, 1, lie.pack()))
    monkeypatch.setattr(board, "_open", lambda url: port)
    assert evaluate(small_pickle, "x", 1) == 2
    assert "the board's sizes are not those of its network" in capsys.readouterr().err


def test_too_large_to_serve(small_pickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LARGEST", 242)
    flags = ["--model", str(small_pickle), "--out_dir", str(tmp_path / "code"), "--serve", "--test_images", "0"]
    assert code_gen.main(flags) == 2
    assert not (tmp_path / "code").exists()


def test_flags_of_a_board(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["--board", "/dev/ttyACM0"], "--board needs --eval"),
        (["--eval", "x.pkl", "--board_images", "3"], "--board_images needs --board"),
        (["--eval", "x.pkl", "--board", ""], "--board is empty: give it a value, or leave it out"),
        (["--eval", ""], "--eval is empty: give it a value, or leave it out"),
        (["--output", ""], "--output is empty: give it a value, or leave it out"),
        (["--eval", "x.pkl", "--board", "y", "--board_images", "0"], "is 1 or more"),
    ):
        with pytest.raises(SystemExit) as stop:
            nn_quantizer.main(flags)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


# What the programs of boards use of their systems.
STUBS = {
    "mbed": {
        "mbed.h": """#include <stddef.h>
#include <sys/types.h>
#define STDIN_FILENO 0
#define STDOUT_FILENO 1
namespace mbed { struct FileHandle { ssize_t read(void *, size_t); ssize_t write(const void *, size_t); };
FileHandle *mbed_file_handle(int); }
"""
    },
    "mps2": {},
    "keil": {"RTE_Components.h": '#define CMSIS_device_header "device.h"\n', "device.h": ""},
    "zephyr": {
        "zephyr/kernel.h": "",
        "zephyr/device.h": "struct device { int x; };\nextern const struct device console;\n"
        "#define DEVICE_DT_GET(node) (&console)\n#define DT_CHOSEN(name) name\n",
        "zephyr/drivers/uart.h": "int uart_poll_in(const struct device *, unsigned char *);\n"
        "void uart_poll_out(const struct device *, unsigned char);\n",
    },
}


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("board", STUBS)
def test_programs_that_serve_compile(board: str, compiler: str, small_pickle: Path, tmp_path: Path) -> None:
    flags = ("--target", board, "--serve", "--api", "s8", "--test_images", str(int(compiler == "gcc")))
    folder = generate(small_pickle, tmp_path / "code", *flags)
    generate(small_pickle, tmp_path / "mps2", "--target", "mps2", "--api", "s8")
    for name, text in STUBS[board].items():
        (tmp_path / "stubs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stubs" / name).write_text(text)
    (program,) = [*folder.glob("main.cpp"), *folder.glob("src/main.c")]
    options = ["-mcpu=cortex-m4", "-mthumb", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    folders = [f"-I{path}" for path in (folder, tmp_path / "stubs", tmp_path / "mps2" / "portable")]
    done = run(*arm_compilers()[compiler], *options, *folders, program)
    assert done.returncode == 0, done.stderr
