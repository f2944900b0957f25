"""All configs of the repository and their presets."""

from helpers.tiny import ROOT
from maskcl_jax import config
from maskcl_jax.config import load
from maskcl_jax.errors import UserError

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def has_preset(path, preset: str) -> bool:
    try:
        load(path, preset)
    except UserError:
        return False
    return True


PRESETS = [(path, preset) for path in CONFIGS for preset in ("", *config.DATA) if has_preset(path, preset)]
