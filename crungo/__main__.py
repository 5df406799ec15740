"""The command line's entry: ``crungo`` and ``python -m crungo``. Invariant: importing this imports nothing else."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from crungo.cli.dispatch import main as dispatch  # `import crungo.__main__` costs nothing

    sys.exit(dispatch())


if __name__ == "__main__":
    main()
