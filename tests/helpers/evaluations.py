"""A run of small images, and its evaluations."""

from maskcl_jax.evaluate import (
    session,
    settings,
)

EIGHT_PIXELS = {"data.image_size": (8, 8), "data.channels": 1, "model.patch_size": 4, "data.num_examples": 61}


def opened(run, protocol, tmp_path, *overrides, data=""):
    """The session of one evaluation, its files under tmp_path."""
    (chosen,) = settings.create(protocol, run.config, data=data, overrides=overrides)
    return session.open_session(run._replace(workdir=str(tmp_path)), chosen)
