"""The methods, by the name that `config.method.name` carries."""

from maskcl_jax.errors import UserError
from maskcl_jax.methods.base import Method
from maskcl_jax.methods.ccmim import CCMIM
from maskcl_jax.methods.mae import MAE

METHODS = {"mae": MAE, "ccmim": CCMIM}


def create(config) -> Method:
    """The method of a config. Raises UserError for an unknown name or for fields that do not go together."""
    if config.method.name not in METHODS:
        raise UserError(f"method.name={config.method.name!r} is unknown: use one of {', '.join(METHODS)}")
    return METHODS[config.method.name](config)
