"""A run whose encoder segments small images, and its evaluations."""

from helpers.untrained import made
from maskcl_jax.evaluate import session, settings


def small_run():
    """Of 16x16 images."""
    return made("mae", **{"data.image_size": (16, 16), "model.patch_size": 4})


def opened(run, folder, *overrides, protocol="segment"):
    """A session of the protocol on folders: three steps of 8 images."""
    short = ("batch_size=8", "eval_batch_size=2", "total_steps=3", "checkpoint_every_epochs=0", "width=8")
    (chosen,) = settings.create(protocol, run.config, data="folder", overrides=(*short, *overrides))
    return session.open_session(run._replace(workdir=str(folder)), chosen)
