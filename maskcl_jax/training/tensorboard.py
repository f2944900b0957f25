"""TensorBoard event files, written with the `tensorboard` package and without TensorFlow."""

import io
import os
import pathlib
import socket
import time
from collections.abc import Mapping

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.image.metadata import create_summary_metadata as image_metadata
from tensorboard.plugins.scalar.metadata import create_summary_metadata as scalar_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto


class EventWriter:
    """Scalars and images in one event file.

    The methods are those of `clu.metric_writers.MetricWriter` that a run calls, with the same arguments. It is not a
    subclass, because importing `clu.metric_writers` imports TensorFlow. So does tensorboard's own `EventFileWriter`
    where TensorFlow is installed; its `RecordWriter` does not.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        """Creates the event file in `folder`, which must exist."""
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self.records = RecordWriter((pathlib.Path(folder) / name).open("ab"))
        self._write(Event(file_version="brain.Event:2"))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one value per tag; NaN and infinity too."""
        summary = Summary()
        for tag, value in scalars.items():
            tensor = make_tensor_proto(np.asarray(value, np.float32))
            summary.value.add(tag=tag, tensor=tensor, metadata=scalar_metadata(display_name=None, description=None))
        self._write(Event(step=step, summary=summary))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images as PNG: (N, H, W, 3) uint8 per tag."""
        summary = Summary()
        for tag, batch in images.items():
            height, width = batch.shape[1:3]
            # The image plugin's format: width and height as text, then the files.
            strings = [str(width).encode(), str(height).encode(), *map(png, batch)]
            tensor = TensorProto(dtype=DT_STRING, string_val=strings)
            tensor.tensor_shape.CopyFrom(TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(strings))]))
            summary.value.add(tag=tag, tensor=tensor, metadata=image_metadata(display_name=None, description=None))
        self._write(Event(step=step, summary=summary))

    def flush(self) -> None:
        """Makes everything that was written visible to TensorBoard."""
        self.records.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self.records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())
        self.flush()


def png(image: np.ndarray) -> bytes:
    """A PNG file of (H, W, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()
