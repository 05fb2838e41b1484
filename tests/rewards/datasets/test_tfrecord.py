"""TFRecords against TensorBoard's writer and checksum, Examples against the protocol buffers library."""

import struct
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.summary.writer.record_writer import masked_crc32c as masked_by_tensorboard

from rewards.datasets.tfrecord import crc32c, masked_crc32c, parse_example, read_records
from tests.rewards.datasets.written import checksum, example, record

SIZES = (0, 1, 2, 3, 4, 5, 1023, 1024, 1025, 1026, 1027, 1028, 5000)


def _bytes(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def test_checksum_of_the_standard_s_example() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("size", SIZES)
def test_checksum_is_that_of_tensorboard_and_that_bit_by_bit(size: int) -> None:
    content = _bytes(size)
    found = struct.pack("<I", masked_crc32c(content))
    assert found == checksum(content)
    assert masked_crc32c(content) == masked_by_tensorboard(content)


def test_records_that_tensorboard_wrote_are_read_back(tmp_path: Path) -> None:
    payloads = [_bytes(size) for size in SIZES]
    with (tmp_path / "a.tfrecord").open("wb") as file:
        writer = RecordWriter(file)
        for payload in payloads:
            writer.write(payload)
        writer.flush()
    assert list(read_records(tmp_path / "a.tfrecord")) == payloads


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.tfrecord").write_bytes(b"")
    assert list(read_records(tmp_path / "a.tfrecord")) == []


def test_every_truncation_is_found_at_the_record_it_hits(tmp_path: Path) -> None:
    path, first, second = tmp_path / "a.tfrecord", record(b"first"), record(b"the second")
    for length in range(len(first) + 1, len(first + second)):
        path.write_bytes((first + second)[:length])
        records = read_records(path)
        assert next(records) == b"first"
        with pytest.raises(
            ValueError, match=rf"a.tfrecord ends in the middle of the record .* byte {len(first)}: .* trunc"
        ):
            next(records)


def test_every_flipped_bit_is_found_before_its_record_is_given(tmp_path: Path) -> None:
    path, first, second = tmp_path / "a.tfrecord", record(b"first"), record(b"the second")
    for bit in range(8 * len(second)):
        damaged = bytearray(second)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(first + damaged)
        records = read_records(path)
        assert next(records) == b"first"
        with pytest.raises(
            ValueError, match=rf"a.tfrecord has a wrong checksum in the record that begins at byte {len(first)}"
        ):
            next(records)


def test_a_length_that_is_nonsense_takes_no_memory(tmp_path: Path) -> None:
    length = struct.pack("<Q", 2**62)
    (tmp_path / "a.tfrecord").write_bytes(length + checksum(length) + b"little")
    with pytest.raises(ValueError, match="truncated"):
        list(read_records(tmp_path / "a.tfrecord"))


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tfrecord").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 150710286\n")
    with pytest.raises(ValueError, match="Git LFS pointer: run `git lfs pull`"):
        list(read_records(tmp_path / "a.tfrecord"))


def _messages() -> type:
    """tf.train.Example, from a description of its fields."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    lists = {"BytesList": kinds.TYPE_BYTES, "FloatList": kinds.TYPE_FLOAT, "Int64List": kinds.TYPE_INT64}
    for name, kind in lists.items():
        file.message_type.add(name=name).field.add(name="value", number=1, label=kinds.LABEL_REPEATED, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(lists, 1):
        feature.field.add(
            name=name.lower(), number=number, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_MESSAGE,
            type_name=f".tf.{name}", oneof_index=0,
        )  # fmt: skip
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_STRING)
    entry.field.add(
        name="value", number=2, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_MESSAGE, type_name=".tf.Feature"
    )
    features.field.add(
        name="feature", number=1, label=kinds.LABEL_REPEATED, type=kinds.TYPE_MESSAGE,
        type_name=".tf.Features.FeatureEntry",
    )  # fmt: skip
    file.message_type.add(name="Example").field.add(
        name="features", number=1, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_MESSAGE, type_name=".tf.Features"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


def test_examples_of_the_protocol_buffers_library_are_read_back() -> None:
    message = _messages()()
    feature = message.features.feature
    feature["texts"].byteslist.value.extend([b"", b"a" * 300, "\u00e9".encode()])
    feature["floats"].floatlist.value.extend([0.5, -1.25, 3e38])
    feature["numbers"].int64list.value.extend([0, 1, -1, 2**63 - 1, -(2**63)])
    feature["none"].SetInParent()
    found = parse_example(message.SerializeToString())
    assert found == {
        "texts": [b"", b"a" * 300, "\u00e9".encode()],
        "floats": [0.5, -1.25, pytest.approx(3e38)],
        "numbers": [0, 1, -1, 2**63 - 1, -(2**63)],
        "none": [],
    }


def test_examples_written_by_hand_are_those_of_the_library() -> None:
    message = _messages().FromString(example({"score": 0.75, "name": b"x"}))  # pyright: ignore[reportAttributeAccessIssue]
    assert list(message.features.feature["score"].floatlist.value) == [0.75]
    assert list(message.features.feature["name"].byteslist.value) == [b"x"]


def test_bytes_that_are_no_example_are_refused() -> None:
    """Cut anywhere, an Example is another one, or none; nothing else may come out."""
    payload = example({"score": 0.75, "name": b"x"})
    refused = 0
    for length in range(1, len(payload)):
        try:
            parse_example(payload[:length])
        except ValueError as error:
            assert "no tf.train.Example" in str(error)
            refused += 1
    assert refused > 0.9 * len(payload)
    generator = np.random.default_rng(0)
    for _ in range(3000):
        damaged = bytearray(payload)
        damaged[generator.integers(len(payload))] = generator.integers(256)
        try:
            parse_example(bytes(damaged))
        except ValueError as error:
            assert "no tf.train.Example" in str(error)
