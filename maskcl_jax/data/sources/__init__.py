"""Where images come from: one file a source, chosen by `config.data.source`."""

import importlib
from typing import Any

from maskcl_jax.data.sources.base import SPLITS, Arrays, Encoded, Source, Split
from maskcl_jax.errors import UserError

__all__ = ["SOURCES", "SPLITS", "Arrays", "Encoded", "Source", "Split", "open_source"]

# Where each class is; imported only when chosen, so that one source does not need the libraries of another.
SOURCES = {
    "embedded": "maskcl_jax.data.sources.embedded:EmbeddedSource",
    "tfds": "maskcl_jax.data.sources.tfds:TfdsSource",
    "folder": "maskcl_jax.data.sources.folder:FolderSource",
    "tar": "maskcl_jax.data.sources.tar:TarSource",
    "npz": "maskcl_jax.data.sources.npz:NpzSource",
    "synthetic": "maskcl_jax.data.sources.synthetic:SyntheticSource",
    "scenes": "maskcl_jax.data.sources.scenes:ScenesSource",
}


def open_source(data_config: Any) -> Source:
    """Opens the data set that `config.data` describes; cheap, images are read later.

    Args:
        data_config: `config.data`, an `ml_collections.ConfigDict`.

    Raises:
        UserError: A field has an impossible value, or the data is not there.
    """
    kind = data_config.source
    if kind not in SOURCES:
        raise UserError(f"data.source={kind!r} is unknown: use one of {', '.join(SOURCES)}")
    if data_config.eval_resize < 1:
        raise UserError(f"data.eval_resize={data_config.eval_resize} is out of range: use 1.0 or more, as 256/224")
    module, _, name = SOURCES[kind].partition(":")
    return getattr(importlib.import_module(module), name)(data_config)
