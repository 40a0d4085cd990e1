"""What a kernel says of itself, run in it before the first cell: ``exec`` of this file.

It stands alone: the kernel may be of another environment, without minilib. After each
cell it writes to the file that ``MINILIB_KERNEL`` names which Python runs, and the
versions of the packages as far as they are imported; of others, as they are installed.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata


def say() -> None:
    """Write what this kernel is, now and after each cell that imported more."""
    target = os.environ.pop("MINILIB_KERNEL")
    packages = json.loads(os.environ.pop("MINILIB_PACKAGES"))
    said = [""]

    def version(package: str, module: str) -> str | None:
        found = getattr(sys.modules.get(module), "__version__", None)
        if isinstance(found, str):
            return found.partition("+")[0]
        try:
            return metadata.version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            return None

    def write(*_: object) -> None:
        imported = [module for module in packages.values() if module in sys.modules]
        if imported == said:
            return
        said[:] = imported
        about = {
            "executable": sys.executable,
            "prefix": sys.prefix,
            "python": ".".join(map(str, sys.version_info[:3])),
            "versions": {name: version(name, packages[name]) for name in packages},
        }
        with open(target + ".tmp", "w", encoding="utf-8") as file:
            json.dump(about, file)
        os.replace(target + ".tmp", target)

    write()
    get_ipython().events.register(  # type: ignore[name-defined]  # noqa: F821
        "post_run_cell", write
    )


if "MINILIB_KERNEL" in os.environ:
    say()
