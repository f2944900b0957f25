"""Trains: `python -m maskcl_jax.main --config=configs/ccmim.py[:preset,key=value,...] [--workdir=DIR]`.

`--workdir=DIR` alone goes on with the run in DIR, as it was configured: one that broke off, or imported weights.
"""

from absl import flags

from maskcl_jax import cli
from maskcl_jax.errors import UserError

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", "", "The run's folder; default runs/<config>-<preset>.")


def main(argv: list[str]) -> None:
    """Trains the config of the command line, or that of the run, in its workdir."""
    # After the flags are parsed: a wrong flag is told at once.
    from maskcl_jax.checkpoint import read_config
    from maskcl_jax.config import unflat
    from maskcl_jax.train import train

    if CONFIG.value is not None:
        train(CONFIG.value, WORKDIR.value or f"runs/{cli.config_stem()}-{CONFIG.value.preset}")
    elif WORKDIR.value:
        train(unflat(read_config(WORKDIR.value)), WORKDIR.value)
    else:
        raise UserError("--config is missing: give one of configs/, or the --workdir of a run to go on with")


if __name__ == "__main__":
    cli.run(main)
