"""The methods, by the name that `config.method.name` carries."""

from maskcl_jax.errors import UserError
from maskcl_jax.methods.base import Aux, Carried, Method, check_choice
from maskcl_jax.methods.ccmim import CCMIM
from maskcl_jax.methods.cmae import CMAE
from maskcl_jax.methods.macrl import MACRL
from maskcl_jax.methods.mae import MAE
from maskcl_jax.methods.maskco import MaskCo
from maskcl_jax.methods.mocov2 import MoCoV2
from maskcl_jax.methods.mocov3 import MoCoV3
from maskcl_jax.methods.saliency_masking import saliency_masking
from maskcl_jax.methods.simclr import SimCLR
from maskcl_jax.ops import chunked

METHODS = {
    "mae": MAE,
    "ccmim": CCMIM,
    "cmae": CMAE,
    "macrl": MACRL,
    "mocov3": MoCoV3,
    "moco_v2": MoCoV2,
    "simclr": SimCLR,
    "maskco": MaskCo,
    "saliency_masking": saliency_masking,
}

__all__ = ["METHODS", "Aux", "Carried", "Method", "create"]


def create(config, mesh=None) -> Method:
    """The method of a config. Raises UserError for an unknown name or for fields that do not go together.

    mesh: the devices it will be trained on, which settle what the config leaves to them.
    """
    if config.method.name not in METHODS:
        raise UserError(f"method.name={config.method.name!r} is unknown: use one of {', '.join(METHODS)}")
    method = METHODS[config.method.name](config)
    if config.image_chunks > 1 and not method.works_in_chunks:
        raise UserError(
            f"image_chunks={config.image_chunks} does not go with method.name={config.method.name!r}: no decoder "
            "there makes a reconstruction and nothing else; use 0 or 1"
        )
    if mesh is not None and not config.image_chunks and method.works_in_chunks:
        method.image_chunks = chunked.chunks_for(config, mesh, length=1 + method.num_patches)
    check_choice("eval.feature", config.eval.feature, method.feature_kinds)
    return method
