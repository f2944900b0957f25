"""The header of a JPEG file: its height, told lower than it is, so that a decoder stops early."""

MARKER, START_OF_SCAN, RESTART_INTERVAL = 0xFF, 0xDA, 0xDD
FRAMES = range(0xC0, 0xD0)
NO_FRAMES = (0xC4, 0xC8, 0xCC)  # tables and an extension, numbered among the frames
SEQUENTIAL = (0xC0, 0xC1)


def with_height(encoded: bytes, height: int) -> bytes | None:
    """The same file, said to be `height` rows high, less than it has: a decoder reads just its first rows.

    None where that would not be so: the file has several scans (a progressive one has them), each over all rows, or
    restart markers, or is not understood.
    """
    at, frame = 2, None  # behind the start of the image
    while at + 4 <= len(encoded) and encoded[at] == MARKER:
        kind, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4], "big")
        if kind == RESTART_INTERVAL:
            return None
        if kind == START_OF_SCAN:
            return _lowered(encoded, frame, height) if frame and encoded[at + 4] == encoded[frame + 9] else None
        if kind in FRAMES and kind not in NO_FRAMES:
            if kind not in SEQUENTIAL:
                return None
            frame = at
        at += 2 + length
    return None


def _lowered(encoded: bytes, frame: int, height: int) -> bytes:
    """Behind the marker of a frame: its length in two bytes, the bits of a number in one, and the height in two."""
    return b"".join((encoded[: frame + 5], height.to_bytes(2, "big"), memoryview(encoded)[frame + 7 :]))
