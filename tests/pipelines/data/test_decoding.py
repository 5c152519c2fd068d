"""Encoded images -> tensors: the short way through PIL is PIL's own, and threads divide the work as it pays."""

import io
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.data import Preprocess
from pipelines.data.decoding import ROWS_PER_TASK, SMALL_SECONDS, Decoder, _pool
from pipelines.data.image_files import DECODE_ERRORS, open_image
from pipelines.data.plain_png import decode_plain_png
from pipelines.data.preprocess import prepare_image


def picture(mode: str, size: tuple[int, int] = (9, 7)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def text() -> PngInfo:
    info = PngInfo()
    info.add_text("key", "value")
    return info


def upside_down() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif


def in_two_chunks(content: bytes) -> bytes:
    """The same PNG with its pixels in two IDAT chunks and an empty one."""
    data = content[41 : 41 + int.from_bytes(content[33:37])]
    chunks = [b"IDAT" + part for part in (data[:10], b"", data[10:])]
    written = b"".join((len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) for chunk in chunks)
    return content[:33] + written + content[45 + len(data) :]


def with_header(content: bytes, place: int, value: int) -> bytes:
    """Another value of a byte of the header, with the checksum that belongs to it."""
    header = content[12:place] + bytes([value]) + content[place + 1 : 29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:]


PLAIN = {
    "grey": png(picture("L")),
    "colour": png(picture("RGB")),
    "large": png(picture("RGB", (300, 200))),
    "several chunks": in_two_chunks(png(picture("L"))),
    "not compressed": png(picture("L"), compress_level=0),
}
OTHERS = {
    "palette": png(picture("P")),
    "one bit": png(picture("1")),
    "sixteen bits": png(Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9) * 999)),
    "alpha": png(picture("RGBA")),
    "transparent grey": png(picture("L"), transparency=7),
    "transparent colour": png(picture("RGB"), transparency=(1, 2, 3)),
    "text": png(picture("L"), pnginfo=text()),
    "upside down": png(picture("L"), exif=upside_down()),
    "interlaced": with_header(PLAIN["grey"], 28, 1),
    "unknown filter": with_header(PLAIN["grey"], 27, 1),
    "end is missing": PLAIN["grey"][:-12],
    "truncated": PLAIN["colour"][:100],
    "header only": PLAIN["grey"][:33],
    "no content": b"",
    "wrong checksum of the header": PLAIN["grey"][:29] + b"\0\0\0\0" + PLAIN["grey"][33:],
}


def by_pil(content: bytes) -> tuple[str, bytes] | type[Exception]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.mode, image.tobytes()
    except DECODE_ERRORS as error:
        return type(error)


def by_us(content: bytes) -> tuple[str, bytes] | type[Exception]:
    try:
        image = open_image(content, 10**6)
    except DECODE_ERRORS as error:
        return type(error)
    return image.mode, image.tobytes()


@pytest.mark.parametrize("content", [*PLAIN.values(), *OTHERS.values()], ids=[*PLAIN, *OTHERS])
def test_a_picture_is_what_pil_makes_of_it(content):
    assert by_us(content) == by_pil(content)


@pytest.mark.parametrize("content", PLAIN.values(), ids=PLAIN)
def test_a_plain_png_takes_the_short_way(content):
    assert decode_plain_png(content, 10**6) is not None


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_everything_else_is_left_to_pil(content):
    assert decode_plain_png(content, 10**6) is None


@pytest.mark.parametrize("name", ["grey", "colour", "several chunks"])
def test_a_damaged_file_is_what_pil_makes_of_it(name):
    content, draw = PLAIN[name], np.random.default_rng(1)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(draw.integers(8))
        assert by_us(bytes(damaged)) == by_pil(bytes(damaged)), place


def test_a_path_is_read_like_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(PLAIN["large"])
    assert open_image(tmp_path / "a.png", 10**6).tobytes() == open_image(PLAIN["large"], 10**6).tobytes()


def test_the_limit_of_pixels_holds_on_the_short_way():
    assert decode_plain_png(PLAIN["grey"], 63) is not None
    assert decode_plain_png(PLAIN["grey"], 62) is None


def test_decoding_many_is_decoding_each():
    preprocess = Preprocess(mode="RGB", size=8)
    contents = [png(picture(("L", "RGB")[at % 2], (8 + at % 3, 8))) for at in range(50)]
    contents[20] = b"no picture"
    for threads in (1, 2):
        for small in (True, False):
            decoder = Decoder(preprocess, threads)
            decoder.small = small
            images, failures = decoder([lambda c=content: open_image(c, 1000) for content in contents])
            assert list(failures) == [20]
            assert not images[20].any()
            for at in set(range(50)) - {20}:
                assert torch.equal(images[at], prepare_image(open_image(contents[at], 1000), preprocess))


class Recorder:
    """Readers of pictures that take `seconds` each; the threads that called them, and how many at once at most."""

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.threads, self.inside, self.most = seconds, set(), 0, 0

    def __call__(self) -> Image.Image:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.threads.add(threading.get_ident())
        if self.seconds:
            time.sleep(self.seconds)
        self.inside -= 1
        return Image.new("RGB", (4, 4))


def test_one_decoding_thread_is_the_callers_own():
    """So that threads which read and compute in turn do not wait for one thread that decodes for all."""
    for seconds in (0.0, 10 * SMALL_SECONDS):
        reader = Recorder(seconds)
        Decoder(Preprocess(size=4), threads=1)([reader] * 3 * ROWS_PER_TASK)
        assert reader.threads == {threading.get_ident()}


def test_large_pictures_are_decoded_side_by_side():
    reader, decoder = Recorder(10 * SMALL_SECONDS), Decoder(Preprocess(size=4), threads=2)
    decoder([reader] * ROWS_PER_TASK)
    assert reader.threads == {threading.get_ident()}
    assert not decoder.small
    decoder([reader] * 4 * ROWS_PER_TASK)
    assert reader.most == 2


def test_a_call_that_meets_large_pictures_divides_the_rest_of_them():
    reader = Recorder(10 * SMALL_SECONDS)
    images, failures = Decoder(Preprocess(size=4), threads=2)([reader] * 5 * ROWS_PER_TASK)
    assert reader.most == 2
    assert (len(images), failures) == (5 * ROWS_PER_TASK, {})


def test_small_pictures_are_decoded_by_one_thread_at_a_time():
    reader = Recorder(SMALL_SECONDS / 100)
    decoders = [Decoder(Preprocess(size=4), threads=1) for _ in range(4)]
    for decoder in decoders:
        decoder.small = True
    with ThreadPoolExecutor(4) as pool:
        for decoder in decoders:
            pool.submit(decoder, [reader] * (ROWS_PER_TASK - 1))
    assert reader.most == 1


def test_a_few_slow_pictures_do_not_make_small_ones_large():
    quick, slow = Recorder(), Recorder(10 * SMALL_SECONDS)
    decoder = Decoder(Preprocess(size=4), threads=2)
    decoder([slow] * 4 + [quick] * (ROWS_PER_TASK - 4) + [slow] * 3)
    assert decoder.small


def test_decoding_threads_leave_torchs_threads_alone():
    """Each would start a team of its own, and set what the training step uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pool = _pool(3, -1)  # no process has this number: a new pool
        assert torch.get_num_threads() == 2
        assert {pool.submit(torch.get_num_threads).result() for _ in range(9)} == {1}
        pool.shutdown()
    finally:
        torch.set_num_threads(before)
        _pool.cache_clear()
