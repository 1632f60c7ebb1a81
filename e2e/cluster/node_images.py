"""Gives a node's containerd an image, sending only the layers it does not have yet."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Collection
from pathlib import Path

from e2e.cluster.node import NAMESPACE, Node, ctr
from e2e.cluster.shell import CommandError, UserError, phase
from e2e.images.oci import ImageLayout
from e2e.images.pause import REPOSITORY


def load(node: Node, *, image: str) -> None:
    """Imports an image archive (a path), or an image of our cache by reference unless the node has that very one.

    Raises UserError when there is neither such a file nor such an image, CommandError when containerd refuses it.
    """
    if Path(image).is_file():
        with phase(f"{node.name}: {Path(image).name}"):
            ctr(node, "images", "import", image)
        return
    if "/" in image and image.endswith(".tar"):
        raise UserError(f"image archive {image}: no such file")
    layout = ImageLayout()
    if has_image(node, reference=image, digest=layout.manifest(image).digest):
        return
    with phase(f"{node.name}: {image.rpartition('/')[2]}"):
        _import(node, layout=layout, reference=image)


def has_image(node: Node, *, reference: str, digest: str) -> bool:
    """Whether the node's image of that name is the one with that manifest digest."""
    return images(node).get(reference) == digest


def images(node: Node) -> dict[str, str]:
    """Manifest digest by image name, as the node's containerd has them."""
    # Name, media type, digest, size and more, in columns.
    rows = [line.split() for line in ctr(node, "images", "list").splitlines()[1:]]
    return {row[0]: row[2] for row in rows}


def forget_old(node: Node, *, kept: Collection[str]) -> None:
    """Removes our images that are not in `kept`; nobody else's."""
    present = images(node)
    kept_digests = {digest for name, digest in present.items() if name in kept}
    # The CRI plugin gives every image a second name, by the digest of its configuration.
    ours = {digest for name, digest in present.items() if name.startswith(f"{REPOSITORY}/")}
    old = [name for name, digest in present.items() if digest in ours - kept_digests]
    if old:
        ctr(node, "images", "delete", "--sync", *old)


def _import(node: Node, *, layout: ImageLayout, reference: str) -> None:
    present = set(ctr(node, "content", "list", "--quiet").split())
    manifest = layout.manifest(reference).digest
    command = ["ctr", "--address", str(node.socket), "--namespace", NAMESPACE, "images", "import", "-"]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=errors, stderr=errors)
        assert process.stdin is not None
        try:
            # The manifest always travels: the archive's index has to lead to it.
            layout.stream(reference, process.stdin, without=present - {manifest})
            process.stdin.close()
        except BrokenPipeError:
            # ctr has ended early; its own message below says why.
            process.stdin = None
        returncode = process.wait()
        errors.seek(0)
        output = errors.read().decode(errors="replace")
    if returncode != 0:
        raise CommandError(f"importing {reference} into {node.name}: exit code {returncode}\n{output.strip()[-2000:]}")
