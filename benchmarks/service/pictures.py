"""Pictures of every kind that cameras and people send, and files that only claim to be some."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def _scene(width: int, height: int, seed: int) -> Image.Image:
    """A smooth coloured scene, so that files have the sizes of camera images."""
    drawn = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(drawn).resize((width, height), Image.Resampling.BICUBIC)


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def _turned(scene: Image.Image) -> bytes:
    tags = Image.Exif()
    tags[ORIENTATION] = 6
    return _bytes(scene, "JPEG", exif=tags)


def _deep(scene: Image.Image) -> bytes:
    grey = np.asarray(scene.convert("L")).astype(np.uint16) * 257
    return _bytes(Image.fromarray(grey), "PNG")


GOOD: dict[str, Callable[[Image.Image], bytes]] = {
    "image.jpg": lambda scene: _bytes(scene, "JPEG", quality=90),
    "progressive.jpg": lambda scene: _bytes(scene, "JPEG", progressive=True),
    "turned.jpg": _turned,
    "cmyk.jpg": lambda scene: _bytes(scene.convert("CMYK"), "JPEG"),
    "grey.jpg": lambda scene: _bytes(scene.convert("L"), "JPEG"),
    "plain.png": lambda scene: _bytes(scene, "PNG"),
    "grey16.png": _deep,
    "alpha.png": lambda scene: _bytes(scene.convert("RGBA"), "PNG"),
    "grey_alpha.png": lambda scene: _bytes(scene.convert("LA"), "PNG"),
    "palette.png": lambda scene: _bytes(scene.convert("P"), "PNG", transparency=0),
    "one_bit.png": lambda scene: _bytes(scene.convert("1"), "PNG"),
    "pixel.png": lambda scene: _bytes(scene.resize((1, 1)), "PNG"),
    "image.webp": lambda scene: _bytes(scene, "WEBP"),
    "scan.tiff": lambda scene: _bytes(scene, "TIFF"),
    "old.bmp": lambda scene: _bytes(scene, "BMP"),
    "still.gif": lambda scene: _bytes(scene, "GIF"),
    "wrong_name.txt": lambda scene: _bytes(scene, "JPEG"),
}


def good(width: int = 640, height: int = 480, seed: int = 0) -> dict[str, bytes]:
    """Return name -> bytes of one picture of every kind."""
    return {name: make(_scene(width, height, seed + i)) for i, (name, make) in enumerate(GOOD.items())}


def bad(seed: int = 0) -> dict[str, tuple[bytes, int, str]]:
    """Return name -> bytes, the status and the code of their refusal."""
    scene = _scene(320, 240, seed)
    jpeg, png = _bytes(scene, "JPEG"), _bytes(scene, "PNG")
    noise = random.Random(seed).randbytes(4096)
    frames = [scene, scene.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    damaged = bytearray(png)
    damaged[len(png) // 2] ^= 0xFF
    return {
        "empty.jpg": (b"", 422, "not_an_image"),
        "text.jpg": (b"This is a letter, not an image.\n" * 20, 422, "not_an_image"),
        "noise.jpg": (noise, 422, "not_an_image"),
        "noise_in_jpeg.jpg": (jpeg[:20] + noise, 422, "not_an_image"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], 422, "broken_image"),
        "head_only.jpg": (jpeg[:100], 422, "not_an_image"),
        "truncated.png": (png[: len(png) // 2], 422, "broken_image"),
        "damaged.png": (bytes(damaged), 422, "broken_image"),
        "bomb.png": (bomb(60_000, 60_000), 413, "too_many_pixels"),
        "bomb_in_text.png": (_text_bomb(), 422, "not_an_image"),
        "animated.gif": (_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]), 422, "animated"),
        "animated.png": (_bytes(frames[0], "PNG", save_all=True, append_images=frames[1:]), 422, "animated"),
        "pages.tiff": (_bytes(frames[0], "TIFF", save_all=True, append_images=frames[1:]), 422, "animated"),
        "float.tiff": (_bytes(scene.convert("F"), "TIFF"), 422, "unfit"),
        "script.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', 422, "not_an_image"),
        "paper.pdf": (b"%PDF-1.4\n" + noise, 422, "not_an_image"),
    }


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG that unpacks to very many grey pixels."""
    rows = zlib.compressobj(9)
    line = b"\0" * (1 + width)
    packed = b"".join(rows.compress(line) for _ in range(min(height, 300))) + rows.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _text_bomb() -> bytes:
    packed = zlib.compress(b"a" * 40_000_000, 9)
    text = b"Comment\0\0" + packed
    head = struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 17 * 16)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", head)
        + _chunk(b"zTXt", text)
        + _chunk(b"IDAT", rows)
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
