"""Trains: `python -m maskcl_jax.main --config=configs/ccmim.py[:preset,key=value,...] [--workdir=DIR]`.

FILE may be any file with a `get_config`, or the name of one of configs/ (`--config=ccmim:imagenet`);
`--config.FIELD=VALUE` sets any field and `--print_config` prints them all. `--workdir=DIR` alone continues the run in
DIR with its own config: an interrupted run, or imported weights.

On many hosts: the same command on each, with a workdir that all of them see. They find each other on TPU pods and under
SLURM, elsewhere by `--coordinator=HOST:PORT --num_processes=N --process_id=I`. Exit status: 0 done; 2 the command
cannot work as written; 143 (130) stopped by SIGTERM (Ctrl-C) and saved, start it again; 1 anything else.
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
    # Imported after the flags are parsed, so that a wrong flag is reported at once.
    from maskcl_jax.config import unflat
    from maskcl_jax.training.loop import train
    from maskcl_jax.training.run_folder import read_config

    if CONFIG.value is not None:
        config, workdir = CONFIG.value, WORKDIR.value or f"runs/{CONFIG.name}-{CONFIG.value.preset}"
    elif WORKDIR.value:
        config, workdir = unflat(read_config(WORKDIR.value)), WORKDIR.value
    else:
        raise UserError("--config is missing: give one of configs/, or the --workdir of a run to continue")
    distributed.join(distributed.process_info_from_flags(), config, workdir)
    train(config, workdir)
    if config.log.report:
        # Imported now: a run should not wait at its start for what only its report needs.
        from maskcl_jax.report import after_training

        if line := after_training(config, workdir):
            print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
