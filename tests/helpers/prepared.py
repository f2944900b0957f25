"""Data sets as TFDS prepares them, written without TensorFlow."""

import json
import struct

FEATURES = "tensorflow_datasets.core.features"


def write(folder, splits, *, file_format="tfrecord", shape=(-1, -1, 3), class_names=("a", "b"), version="1.0.0"):
    """Writes a data set called as the last part of `folder` and returns the folder of its version.

    splits: {name: shards}, a shard is a list of {name: bytes | int}; `image` is an encoded image.
    """
    target = folder / version
    target.mkdir(parents=True, exist_ok=True)
    dimensions = {"shape": {"dimensions": list(map(str, shape))}}
    features = {"image": {"pythonClassName": f"{FEATURES}.image_feature.Image", "image": dimensions}}
    if class_names:
        classes = {"numClasses": len(class_names)}
        features["label"] = {"pythonClassName": f"{FEATURES}.class_label_feature.ClassLabel", "classLabel": classes}
    (target / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    if class_names:
        (target / "label.labels.txt").write_text("\n".join(class_names) + "\n")
    info = {"name": folder.name, "version": version, "fileFormat": file_format, "splits": []}
    for name, shards in splits.items():
        info["splits"].append({"name": name, "shardLengths": [str(len(shard)) for shard in shards]})
        for number, shard in enumerate(shards):
            file = target / f"{folder.name}-{name}.{file_format}-{number:05d}-of-{len(shards):05d}"
            write_records(file, [example(**values) for values in shard])
    (target / "dataset_info.json").write_text(json.dumps(info))
    return target


def write_records(file, records) -> None:
    """A TFRecord file, whose checksums are left empty, or an ArrayRecord file."""
    if ".array_record" not in file.name:
        file.write_bytes(b"".join(struct.pack("<QI", len(r), 0) + r + bytes(4) for r in records))
        return
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def example(**values) -> bytes:
    """A serialized tf.train.Example."""
    entries = b""
    for name, value in values.items():
        kind, content = (1, value) if isinstance(value, bytes) else (3, varint(value % 2**64))
        feature = field(kind, field(1, content))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
