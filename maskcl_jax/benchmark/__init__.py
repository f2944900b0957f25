"""How fast a config is on this machine: `python -m maskcl_jax.benchmark`, see `benchmark.__main__`."""
