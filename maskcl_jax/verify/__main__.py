"""`python -m maskcl_jax.verify [FILE.npz ...]`: exit status 0, 1 past a limit, 2 for a file that cannot be used."""

import pathlib
import sys

import jax

from maskcl_jax.errors import UserError
from maskcl_jax.verify import verify_file

SHIPPED = pathlib.Path(__file__).parent / "reference"


def main(paths: list[str]) -> int:
    """Prints every comparison; returns the exit status."""
    devices = jax.devices()
    print(f"{devices[0].platform} ({devices[0].device_kind}), jax {jax.__version__}, float32, highest matmul precision")
    failed = total = 0
    for path in paths or sorted(SHIPPED.glob("*.npz")):
        checks = verify_file(path)
        print(f"\n{path}")
        print("\n".join(map(str, checks)))
        total += len(checks)
        failed += sum(not check.passed for check in checks)
    print(f"\n{total - failed} of {total} comparisons within their limits" + (f", {failed} FAILED" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
