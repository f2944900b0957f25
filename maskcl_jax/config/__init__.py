"""Configs: defaults, data presets, and how the files of `configs/` become one `ConfigDict`.

A file of `configs/` holds one method: `METHOD`, the fields of `config.method`, and `PRESETS`, what each preset sets.
Where several layers set a field, the last of these holds:

    DEFAULTS < DATA[preset] < METHOD < PRESETS[preset] < `:preset,key=value` < `--config.FIELD=VALUE`
"""

from maskcl_jax.config.defaults import COLOR, DATA, DEFAULTS, SMALL_RESNET, SMALL_VIT, VIT_SIZES, encoder_size
from maskcl_jax.config.fields import (
    Config,
    flat,
    is_vit,
    read_value,
    set_field,
    split_fields,
    suggestion,
    unflat,
    with_defaults,
)
from maskcl_jax.config.loading import build, call_in_file, find_file, load
from maskcl_jax.config.ranges import check, check_values

__all__ = [
    "COLOR",
    "DATA",
    "DEFAULTS",
    "SMALL_RESNET",
    "SMALL_VIT",
    "VIT_SIZES",
    "Config",
    "build",
    "call_in_file",
    "check",
    "check_values",
    "encoder_size",
    "find_file",
    "flat",
    "is_vit",
    "load",
    "read_value",
    "set_field",
    "split_fields",
    "suggestion",
    "unflat",
    "with_defaults",
]
