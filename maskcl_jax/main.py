"""Trains: `python -m maskcl_jax.main --config=configs/ccmim.py[:preset,key=value,...] [--workdir=DIR]`."""

from absl import flags

from maskcl_jax import cli

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", "", "The run's folder; default runs/<config>-<preset>.")


def main(argv: list[str]) -> None:
    """Trains the config of the command line in its workdir."""
    from maskcl_jax.train import train  # after the flags are parsed: a wrong flag is told at once

    train(CONFIG.value, WORKDIR.value or f"runs/{cli.config_stem()}-{CONFIG.value.preset}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
