"""The image cache: one OCI image layout for all images, so that a layer they share lies there once.

Reads and writes the layout's files (OCI Image Layout 1.0) and streams an image as a tar, without the blobs the
receiver already has. It builds nothing (`build`) and knows no container engine.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from e2e.cluster.paths import cache_directory
from e2e.cluster.shell import UserError

REFERENCE = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One file of an image: `digest` is `sha256:<hex>`."""

    digest: str
    size_bytes: int
    media_type: str

    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}


class ImageLayout:
    """An OCI image layout directory; by default the cache's."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or cache_directory() / "images" / "oci"

    def references(self) -> list[str]:
        """The names of the images in the layout."""
        return sorted(entry["annotations"][REFERENCE] for entry in self._entries())

    def manifest(self, reference: str) -> Blob:
        """The manifest of an image; raises UserError when the layout has no such image."""
        for entry in self._entries():
            if entry["annotations"][REFERENCE] == reference:
                return _blob(entry)
        known = ", ".join(self.references()) or "none"
        raise UserError(f"image {reference}: not in the image cache (there: {known}); build it first")

    def blobs(self, reference: str) -> list[Blob]:
        """Every blob of an image: manifest, configuration, layers from the lowest up."""
        manifest = self.manifest(reference)
        content = json.loads(self.path(manifest.digest).read_bytes())
        return [manifest, _blob(content["config"]), *(_blob(layer) for layer in content["layers"])]

    def size_bytes(self, reference: str) -> int:
        """The sum of an image's blobs, whose layers are compressed: what travels to a node that has none."""
        return sum(blob.size_bytes for blob in self.blobs(reference))

    def path(self, digest: str) -> Path:
        """Where a blob lies, or would."""
        algorithm, _, value = digest.partition(":")
        return self.directory / "blobs" / algorithm / value

    def stream(self, reference: str, output: IO[bytes], *, without: Collection[str] = ()) -> None:
        """Writes the image as a tar in OCI layout, without the blobs whose digests the receiver has."""
        entry = self.manifest(reference).descriptor()
        entry["annotations"] = {CONTAINERD_NAME: reference, REFERENCE: reference}
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}
        with tarfile.open(fileobj=output, mode="w|", bufsize=1 << 20) as archive:
            _add(archive, "oci-layout", content=LAYOUT)
            _add(archive, "index.json", content=json.dumps(index).encode())
            for blob in self.blobs(reference):
                if blob.digest in without:
                    continue
                path = self.path(blob.digest)
                with path.open("rb") as file:
                    archive.addfile(_member(str(path.relative_to(self.directory)), blob.size_bytes), file)

    def add_image(self, reference: str, *, layer: bytes, configuration: dict[str, Any]) -> None:
        """Adds an image of one layer (an uncompressed tar); an older image of that name is replaced."""
        layer_blob = self._write(layer, media_type=LAYER_TYPE)
        configuration = {**configuration, "rootfs": {"type": "layers", "diff_ids": [layer_blob.digest]}}
        config_blob = self._write(json.dumps(configuration).encode(), media_type=CONFIG_TYPE)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config_blob.descriptor(),
            "layers": [layer_blob.descriptor()],
        }
        entry = self._write(json.dumps(manifest).encode(), media_type=MANIFEST_TYPE).descriptor()
        entry["annotations"] = {REFERENCE: reference}
        self._replace_entries([*(e for e in self._entries() if e["annotations"][REFERENCE] != reference), entry])

    def keep(self, references: Collection[str]) -> int:
        """Drops every other image and the blobs that only they had; returns the bytes freed."""
        self._replace_entries([e for e in self._entries() if e["annotations"][REFERENCE] in references])
        needed = {blob.digest for reference in self.references() for blob in self.blobs(reference)}
        freed = 0
        for path in (self.directory / "blobs" / "sha256").glob("*"):
            if f"sha256:{path.name}" not in needed:
                freed += path.stat().st_size
                path.unlink()
        return freed

    def repositories(self) -> dict[str, list[str]]:
        """The images of each name without its tag, the oldest first."""
        found: dict[str, list[str]] = {}
        for entry in self._entries():
            reference = entry["annotations"][REFERENCE]
            found.setdefault(reference.rpartition(":")[0], []).append(reference)
        return found

    def _entries(self) -> list[dict[str, Any]]:
        index = self.directory / "index.json"
        if not index.exists():
            return []
        manifests = json.loads(index.read_bytes())["manifests"]
        return [entry for entry in manifests if REFERENCE in entry.get("annotations", {})]

    def _replace_entries(self, entries: list[dict[str, Any]]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "oci-layout").write_bytes(LAYOUT)
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
        _write_atomically(self.directory / "index.json", content=json.dumps(index).encode())

    def _write(self, content: bytes, *, media_type: str) -> Blob:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        path = self.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_atomically(path, content=content)
        return Blob(digest=digest, size_bytes=len(content), media_type=media_type)


def single_file_layer(name: str, content: bytes) -> bytes:
    """A layer with one executable file at the root; the same input gives the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        _add(archive, name, content=content, mode=0o755)
    return buffer.getvalue()


def _blob(descriptor: dict[str, Any]) -> Blob:
    return Blob(digest=descriptor["digest"], size_bytes=descriptor["size"], media_type=descriptor["mediaType"])


def _member(name: str, size_bytes: int, *, mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size_bytes
    member.mode = mode
    return member


def _add(archive: tarfile.TarFile, name: str, *, content: bytes, mode: int = 0o644) -> None:
    archive.addfile(_member(name, len(content), mode=mode), io.BytesIO(content))


def _write_atomically(path: Path, *, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(temporary, path)
