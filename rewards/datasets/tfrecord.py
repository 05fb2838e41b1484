"""TFRecord files and the tf.train.Example messages in them, without TensorFlow.

A file is a row of records: length (8 bytes), its masked CRC, payload, the payload's masked CRC; all little-endian. The
CRC is CRC-32C (Castagnoli), rotated right by 15 bits and moved by a constant. An Example is a protocol buffer:

    Example { Features features = 1 }        Features { map<string, Feature> feature = 1 }
    Feature { BytesList = 1 | FloatList = 2 | Int64List = 3 }, each of them { repeated value = 1 }
"""

import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

MASK_DELTA = 0xA282EAD8
POLYNOMIAL = 0x82F63B78
"""Of CRC-32C, with its bits in reverse order."""
CRC_BLOCK = 1024
VARINT, FIXED64, CHUNK, FIXED32 = 0, 1, 2, 5
"""Wire types of protocol buffers."""

Values: TypeAlias = list[bytes] | list[float] | list[int]


def read_records(path: Path) -> Iterator[bytes]:
    """The payloads of a file, one at a time.

    Raises:
        ValueError: A truncated or damaged record; says which file, and at which byte the record begins.
    """
    with path.open("rb") as file:
        while header := file.read(12):
            start = file.tell() - len(header)
            (length,) = struct.unpack("<Q", _verified(header, path, start))
            yield _verified(_read(file, length + 4), path, start, length)


def masked_crc32c(content: bytes) -> int:
    """The checksum that stands behind `content` in a file."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """CRC-32C. It is linear, so a block's is the XOR of what each byte gives by itself at its distance from the end."""
    table, crc = _table(), 0xFFFFFFFF
    for start in range(0, len(content), CRC_BLOCK):
        block = np.frombuffer(content, np.uint8, offset=start)[:CRC_BLOCK].copy()
        head = np.frombuffer(struct.pack("<I", crc), np.uint8)[: len(block)]
        block[: len(head)] ^= head
        rest = crc >> 8 * len(head)  # of blocks of less than four bytes
        distance = np.arange(len(block) - 1, -1, -1)
        crc = rest ^ int(np.bitwise_xor.reduce(table[distance, block]))
    return crc ^ 0xFFFFFFFF


def parse_example(payload: bytes) -> dict[str, Values]:
    """The features of a tf.train.Example by their names.

    Raises:
        ValueError: Bytes that are none.
    """
    try:
        entries = [dict(_fields(entry)) for features in _chunks(payload) for entry in _chunks(features)]
        return {_chunk(entry[1]).decode(): _values(_chunk(entry.get(2, b""))) for entry in entries}
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"The record is no tf.train.Example ({error}).") from error


@cache
def _table() -> NDArray[np.uint32]:
    """What a byte of each value adds to the CRC if 0, 1, 2, ... bytes follow it."""
    table = np.empty((CRC_BLOCK, 256), np.uint32)
    table[0] = np.arange(256)
    for _ in range(8):
        table[0] = table[0] >> 1 ^ np.where(table[0] & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    for following in range(1, CRC_BLOCK):
        table[following] = table[following - 1] >> 8 ^ table[0][table[following - 1] & 0xFF]
    return table


def _read(file: BinaryIO, size: int) -> bytes:
    """Up to `size` bytes, in pieces, so that a size that is nonsense does not ask for that much memory."""
    pieces = list[bytes]()
    while size and (piece := file.read(min(size, 2**24))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _verified(content: bytes, path: Path, start: int, length: int = 8) -> bytes:
    """`length` bytes, if their checksum follows them."""
    if len(content) < length + 4:
        raise ValueError(
            f"{path} ends in the middle of the record that begins at byte {start}: it is truncated. Fetch it again."
        )
    body, (expected,) = content[:length], struct.unpack("<I", content[length:])
    if masked_crc32c(body) != expected:
        raise ValueError(
            f"{path} has a wrong checksum in the record that begins at byte {start}: it is damaged or no TFRecord. "
            "Fetch it again (a text of 130 bytes is a Git LFS pointer: run `git lfs pull`)."
        )
    return body


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and content of each field: bytes as they stand, or a whole number."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        wire = key & 7
        if wire == VARINT:
            content, place = _varint(message, place)
        elif wire in (CHUNK, FIXED64, FIXED32):
            size, place = _varint(message, place) if wire == CHUNK else (8 if wire == FIXED64 else 4, place)
            content, place = message[place : place + size], place + size
            if place > len(message):
                raise IndexError("a field ends behind its message")
        else:
            raise IndexError(f"wire type {wire}")
        yield key >> 3, content


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _chunk(content: bytes | int) -> bytes:
    if isinstance(content, int):
        raise IndexError("a number where a message should be")
    return content


def _chunks(message: bytes) -> list[bytes]:
    """All fields that have number 1."""
    return [_chunk(content) for number, content in _fields(message) if number == 1]


def _values(feature: bytes) -> Values:
    """The list of a Feature; an empty one if it has none."""
    lists: dict[int, Callable[[bytes], Values]] = {1: _chunks, 2: _floats, 3: _integers}
    found: Values = []
    for number, content in _fields(feature):
        found = lists[number](_chunk(content))
    return found


def _floats(message: bytes) -> list[float]:
    """Packed into one field, or one field each."""
    content = b"".join(_chunks(message))
    return list(struct.unpack(f"<{len(content) // 4}f", content))


def _integers(message: bytes) -> list[int]:
    """Packed into one field, or one field each; signed, of 64 bits."""
    numbers = list[int]()
    for number, content in _fields(message):
        if number == 1 and isinstance(content, int):
            numbers.append(content)
        place = 0
        while isinstance(content, bytes) and place < len(content):
            value, place = _varint(content, place)
            numbers.append(value)
    return [number - 2**64 if number >= 2**63 else number for number in numbers]
