"""The project's container images, built without a container engine's daemon: `python -m e2e.images --help`."""

from e2e.images.build import NAMES, build, image_reference

__all__ = ["NAMES", "build", "image_reference"]
