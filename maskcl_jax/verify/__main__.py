"""`python -m maskcl_jax.verify [--kernels=auto|plain|fused] [FILE.npz ...]`.

Exit status: 0, 1 where a limit is exceeded, 2 for a file that cannot be used.
"""

import argparse
import pathlib
import sys

import jax

from maskcl_jax import cli
from maskcl_jax.models.kernels import KERNELS, resolve
from maskcl_jax.training import compile_cache
from maskcl_jax.verify import verify_file

SHIPPED = pathlib.Path(__file__).parent / "reference"


def main(arguments: list[str]) -> int:
    """Prints every comparison; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m maskcl_jax.verify")
    parser.add_argument("--kernels", choices=KERNELS, default="auto", help="gradients of the networks: config.kernels")
    parser.add_argument("paths", nargs="*", metavar="FILE.npz", help="default: the files that the package ships")
    flags = parser.parse_args(arguments)
    compile_cache.use()
    devices, kernels = jax.devices(), resolve(flags.kernels)
    print(f"{devices[0].platform} ({devices[0].device_kind}), jax {jax.__version__}, float32, highest matmul precision")
    print(f"kernels={kernels}")
    failed = total = 0
    for path in flags.paths or sorted(SHIPPED.glob("*.npz")):
        checks = verify_file(path, kernels=kernels)
        print(f"\n{path}")
        print("\n".join(map(str, checks)))
        total += len(checks)
        failed += sum(not check.passed for check in checks)
    print(f"\n{total - failed} of {total} comparisons within their limits" + (f", {failed} FAILED" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    with cli.one_line_errors():
        sys.exit(main(sys.argv[1:]))
