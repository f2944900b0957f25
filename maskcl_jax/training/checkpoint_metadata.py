"""What a checkpoint keeps beside the state, in Orbax's `_CHECKPOINT_METADATA`: config, checksums, facts of the data.

A digest of all of it lies with it: whatever happens to the file is noticed. It is read here, not by Orbax, which prints
the content of a file that is no JSON and goes on without it.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

FILE = "_CHECKPOINT_METADATA"

# The names in checkpoints of versions that kept no digest.
COUNTS = frozenset({"processes", "devices"})
WITHOUT_DIGEST = (frozenset(), COUNTS, COUNTS | {"checksums", "config"}, COUNTS | {"checksums", "config", "data"})


def with_digest(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the digest to what is kept."""
    return {**kept, "digest": digest_of(kept)}


def digest_of(kept: Mapping[str, Any]) -> str:
    """Of everything but the digest itself."""
    content = {name: value for name, value in kept.items() if name != "digest"}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def read(checkpoint: pathlib.Path) -> dict[str, Any]:
    """What a checkpoint keeps; {} of the first versions.

    Args:
        checkpoint: The folder `checkpoints/STEP`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not what was written.
    """
    content = (checkpoint / FILE).read_bytes()
    if not content:
        raise ValueError(f"its {FILE} is empty")
    try:
        kept = json.loads(content)["custom_metadata"] or {}
        whole = digest_of(kept) == kept["digest"] if "digest" in kept else kept.keys() in WITHOUT_DIGEST
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"its {FILE} is not what was written")
    return kept


def newest(checkpoints: pathlib.Path) -> dict[str, Any]:
    """What the newest checkpoint keeps whose metadata are whole; {} where there is none.

    Args:
        checkpoints: The folder `checkpoints`.
    """
    steps = [int(path.parent.name) for path in checkpoints.glob(f"*/{FILE}") if path.parent.name.isdecimal()]
    for step in sorted(steps, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            return read(checkpoints / str(step))
    return {}


def difference_of(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In which figures two data sets differ, or the encoders that look at them.

    Args:
        there: `Source.facts` as they were kept, and further figures.
        here: The same now. An earlier version may have kept fewer: those that both have are compared.

    Returns:
        Both figures in words; "" where they are equal.
    """
    differing = {name for name, value in there.items() if here.get(name, value) != value}
    if differing <= {"encoder"}:
        return "the weights of the encoder are others" if differing else ""
    then, now = figures_of(there), figures_of(here)
    same_counts = f"as many ({now}), with other names or labels, or other pixels"
    return same_counts if then == now else f"{then} there, {now} here"


def figures_of(facts: Mapping[str, Any]) -> str:
    """The facts of data that are counts, in words: "18 training and 2 test images, 2 classes"."""
    splits = {"train": "training", "test": "test"}
    images = " and ".join(f"{facts[split]} {word}" for split, word in splits.items() if split in facts)
    others = {"classes": "{} classes", "batch_size": "batches of {}", "total_steps": "{} steps"}
    return ", ".join(
        [f"{images} images", *(text.format(facts[name]) for name, text in others.items() if name in facts)]
    )
