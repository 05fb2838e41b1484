"""Data sets in the layout of RichHF-18K, written byte by byte: for the tests of its readers.

Nothing here uses the readers. Checksums are computed bit by bit.
"""

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Row:
    """What a record says, and the picture that it speaks of."""

    uid: str
    prompt: str
    labels: str
    scores: tuple[float, float, float, float]
    artifacts: NDArray[np.uint8]
    misalignment: NDArray[np.uint8]
    picture: NDArray[np.uint8]


COLUMNS = ("artifact_score", "misalignment_score", "aesthetics_score", "overall_score")
PROMPTS = (
    ("a red circle, and two blue squares", "1 1 0 1 1 0 1"),
    ('the "big" cat\'s hat; half-hidden!', "1 0 1 1 1"),
    ("Green:triangle . on?white", "0 1 1 1"),
)


def make_rows(number: int = 30) -> list[Row]:
    """Every third has an empty artifact map, one all of one colour."""
    generator = np.random.default_rng(0)
    rows = list[Row]()
    for index in range(number):
        prompt, labels = PROMPTS[index % 3]
        artifacts, misalignment = np.zeros((2, 512, 512), np.uint8)
        if index % 3:
            artifacts[40 * index % 480 :, 100:200] = 85 * (index % 4)
        misalignment[7, index] = 255
        scores = generator.integers(0, 13, 4) / 12
        picture = generator.integers(0, 256, (24, 16 + index, 3), np.uint8)
        rows.append(Row(f"{index:08x}-uid", prompt, labels, tuple(scores.tolist()), artifacts, misalignment, picture))
    return rows


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encoded without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def checksum(content: bytes) -> bytes:
    """The masked CRC-32C, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(payload: bytes) -> bytes:
    """A record of a TFRecord file."""
    length = struct.pack("<Q", len(payload))
    return length + checksum(length) + payload + checksum(payload)


def varint(number: int) -> bytes:
    """Seven bits a byte, lowest first."""
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that holds bytes or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(features: dict[str, bytes | float]) -> bytes:
    """A tf.train.Example whose features have one value each."""
    entries = [field(1, name.encode()) + field(2, _feature(value)) for name, value in features.items()]
    return field(1, b"".join(field(1, entry) for entry in entries))


def _feature(value: bytes | float) -> bytes:
    return field(1, field(1, value)) if isinstance(value, bytes) else field(2, field(1, struct.pack("<f", value)))


def features(row: Row, split: str) -> dict[str, bytes | float]:
    """All features of RichHF-18K."""
    return {
        "filename": f"{split}/{row.uid}.png".encode(),
        **dict(zip(COLUMNS, row.scores, strict=True)),
        "artifact_map": png(row.artifacts),
        "misalignment_map": png(row.misalignment),
        "prompt_misalignment_label": row.labels.encode(),
    }


def write_records(path: Path, payloads: list[bytes]) -> None:
    """A TFRecord file."""
    path.write_bytes(b"".join(record(payload) for payload in payloads))


def write_pickapic(folder: Path, rows: list[Row]) -> None:
    """Two parquet files that compare each picture with the next, and strangers with each other."""
    folder.mkdir(parents=True)
    nobody = {"image_0_uid": "x", "image_1_uid": "y", "jpg_0": b"?", "jpg_1": b"?", "caption": "of no interest"}
    for half in (0, 1):
        pairs = [(row, rows[(index + 3) % len(rows)]) for index, row in enumerate(rows) if index % 2 == half]
        table = [
            {
                "image_0_uid": a.uid,
                "image_1_uid": b.uid,
                "jpg_0": png(a.picture),
                "jpg_1": png(b.picture),
                "caption": a.prompt,
            }
            for a, b in pairs
        ]
        pq.write_table(pa.Table.from_pylist([nobody, *table, nobody]), folder / f"train-0000{half}.parquet")


def write_richhf(folder: Path, rows: list[Row], split: str = "train") -> None:
    """The data set, and Pick-a-Pic beside it."""
    folder.mkdir(exist_ok=True)
    write_records(folder / f"{split}.tfrecord", [example(features(row, split)) for row in rows])
    write_pickapic(folder / "pickapic", rows)
