"""Trains: `python -m maskcl_jax.main --config=configs/ccmim.py[:preset,key=value,...] [--workdir=DIR]`.

`--workdir=DIR` alone goes on with the run in DIR, as it was configured: one that broke off, or imported weights.

On many hosts: the same command on each, with a workdir that all of them see. They find each other on TPU pods and under
SLURM; elsewhere by `--coordinator=HOST:PORT --num_processes=N --process_id=I`. Exit status: 0 done, 2 what was written
cannot work, 143 (130) stopped by SIGTERM (Ctrl-C) and saved, so start it again; 1 anything else.
"""

from absl import flags

from maskcl_jax import cli
from maskcl_jax.errors import UserError
from maskcl_jax.training import distributed

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", "", "The run's folder; default runs/<config>-<preset>.")
distributed.define_flags()


def main(argv: list[str]) -> None:
    """Trains the config of the command line, or that of the run, in its workdir."""
    # After the flags are parsed: a wrong flag is told at once.
    from maskcl_jax.config import unflat
    from maskcl_jax.training.checkpoint import read_config
    from maskcl_jax.training.loop import train

    if CONFIG.value is not None:
        config, workdir = CONFIG.value, WORKDIR.value or f"runs/{cli.config_stem()}-{CONFIG.value.preset}"
    elif WORKDIR.value:
        config, workdir = unflat(read_config(WORKDIR.value)), WORKDIR.value
    else:
        raise UserError("--config is missing: give one of configs/, or the --workdir of a run to go on with")
    distributed.join(distributed.place_of_flags(), config, workdir)
    train(config, workdir)


if __name__ == "__main__":
    cli.run(main)
