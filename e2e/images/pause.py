"""The pause image: the static Go program that holds a pod's namespaces, alone in an image."""

from __future__ import annotations

from e2e.cluster.toolchain import binary
from e2e.images.oci import ImageLayout, single_file_layer

# "localhost": a name that no container engine ever looks for in a registry.
REPOSITORY = "localhost/modelfleet"
PAUSE_IMAGE = f"{REPOSITORY}/pause:1"


def build_pause(layout: ImageLayout) -> str:
    """Puts the pause image into the layout and returns its reference."""
    layer = single_file_layer("pause", binary("pause").read_bytes())
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
    }
    layout.add_image(PAUSE_IMAGE, layer=layer, configuration=configuration)
    return PAUSE_IMAGE
