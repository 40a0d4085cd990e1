"""``python -m minilib.train``, see :mod:`minilib.training.launch`."""

import sys

from minilib.training.launch import launch, main

__all__ = ["launch", "main"]

if __name__ == "__main__":
    sys.exit(main())
