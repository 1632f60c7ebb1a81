"""The image command: `python -m e2e.images {base,base-torch,base-compiler,control,engine,pause,all}`, and `prune`.

Builds what the cache lacks and prints each image's reference on standard output.
"""

from __future__ import annotations

import argparse
import sys

from e2e.cluster.shell import CommandError, UserError, say
from e2e.images.build import NAMES, build, forget_old
from e2e.images.oci import ImageLayout


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e.images", description=__doc__)
    parser.add_argument("images", nargs="+", choices=[*NAMES, "all", "prune"], metavar="image")
    chosen: list[str] = parser.parse_args(arguments).images
    layout = ImageLayout()
    try:
        for name in NAMES if "all" in chosen else [name for name in chosen if name != "prune"]:
            reference = build(name)
            print(reference)
            say(f"  {layout.size_bytes(reference) / 1e6:.0f} MB compressed")
        if "prune" in chosen:
            forget_old(layout, versions=1)
            say("kept the newest image of each name")
    except UserError as error:
        say(f"error: {error}")
        return 2
    except CommandError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
