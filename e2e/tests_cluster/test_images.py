"""An image's reference covers what goes into it, and the layout keeps shared layers once."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from e2e.cluster.paths import REPOSITORY
from e2e.cluster.shell import UserError
from e2e.images.build import old_references
from e2e.images.oci import ImageLayout, single_file_layer
from e2e.images.recipe import (
    APPS,
    BASE,
    BASE_COMPILER,
    BASE_TORCH,
    AppRecipe,
    app_reference,
    copied_paths,
    image_reference,
    source_files,
)

DOCKERFILE = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE} AS build
COPY pyproject.toml \\
     constraints.txt ./
COPY --chmod=644 part/package package
FROM ${BASE_IMAGE}
COPY --from=build /opt /opt
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    for name, content in {
        "Dockerfile": DOCKERFILE,
        ".gitignore": "*.pyc\n",
        "pyproject.toml": "",
        "constraints.txt": "",
        "part/package/code.py": "x = 1\n",
        "part/package/code.pyc": "",
        "part/tests/test.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


RECIPE = AppRecipe(name="app", dockerfile=Path("Dockerfile"), on=BASE)


def test_copy_lines_name_the_sources_and_stages_do_not_count() -> None:
    assert copied_paths(DOCKERFILE) == ["pyproject.toml", "constraints.txt", "part/package"]


def test_what_git_ignores_and_what_is_not_copied_is_not_part_of_an_image(repository: Path) -> None:
    files = [str(file) for file in source_files(repository, dockerfile=Path("Dockerfile"))]
    assert files == ["Dockerfile", "constraints.txt", "part/package/code.py", "pyproject.toml"]


def test_a_reference_changes_with_the_copied_code_and_with_nothing_else(repository: Path) -> None:
    before = app_reference(RECIPE, root=repository)
    (repository / "part/tests/test.py").write_text("changed")
    (repository / "part/package/code.pyc").write_text("changed")
    assert app_reference(RECIPE, root=repository) == before
    (repository / "part/package/code.py").write_text("x = 2\n")
    assert app_reference(RECIPE, root=repository) != before


def test_a_change_of_the_base_changes_every_image_on_it(repository: Path) -> None:
    other = dataclasses.replace(BASE, packages=(*BASE.packages, "curl"))
    torch = dataclasses.replace(BASE_TORCH, on=other)
    assert other.reference != BASE.reference
    assert torch.reference != BASE_TORCH.reference
    changed = dataclasses.replace(RECIPE, on=other)
    assert app_reference(changed, root=repository) != app_reference(RECIPE, root=repository)


def test_a_change_of_the_compiler_changes_the_image_whose_code_it_compiles(repository: Path) -> None:
    compiled = dataclasses.replace(RECIPE, compiler=BASE_COMPILER)
    newer = dataclasses.replace(BASE_COMPILER, packages=("g++-15",))
    references = {app_reference(recipe, root=repository) for recipe in (RECIPE, compiled)}
    references.add(app_reference(dataclasses.replace(RECIPE, compiler=newer), root=repository))
    assert len(references) == 3


def test_the_engine_image_compiles_on_debians_compiler_and_the_control_image_compiles_nothing() -> None:
    assert APPS["engine"].base_arguments == {"BASE_IMAGE": BASE_TORCH, "COMPILER_IMAGE": BASE_COMPILER}
    assert APPS["control"].base_arguments == {"BASE_IMAGE": BASE}


def test_the_native_sources_are_part_of_the_engine_image_and_what_is_compiled_from_them_here_is_not() -> None:
    files = {str(file) for file in source_files(REPOSITORY, dockerfile=APPS["engine"].dockerfile)}
    assert {"kernels/native/api.cpp", "kernels/native/build.sh", "hatch_build.py"} <= files
    assert {file for file in files if ".so" in file} == set()
    control = {str(file) for file in source_files(REPOSITORY, dockerfile=APPS["control"].dockerfile)}
    assert {file for file in control if file.startswith("kernels/")} == set()


def test_every_image_that_a_dockerfile_stands_on_is_given_to_it() -> None:
    for recipe in APPS.values():
        text = (REPOSITORY / recipe.dockerfile).read_text()
        assert set(re.findall(r"^ARG (\w+_IMAGE)", text, flags=re.MULTILINE)) == set(recipe.base_arguments)


def test_an_image_without_a_dockerfile_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no operator/Dockerfile"):
        app_reference(APPS["control"], root=tmp_path)


def test_an_unknown_image_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        image_reference("gateway", root=Path())


def test_an_image_that_is_not_built_is_named_with_those_that_are(tmp_path: Path) -> None:
    layout = ImageLayout(tmp_path)
    layout.add_image("localhost/a:1", layer=single_file_layer("f", b""), configuration={})
    with pytest.raises(UserError, match=r"image localhost/b:1: not in the image cache \(there: localhost/a:1\)"):
        layout.manifest("localhost/b:1")


def test_a_layer_two_images_share_lies_there_once_and_goes_with_the_last(tmp_path: Path) -> None:
    layout = ImageLayout(tmp_path)
    for reference in ("localhost/a:1", "localhost/b:1"):
        layer = single_file_layer("shared", b"S" * 1000)
        layout.add_image(reference, layer=layer, configuration={"author": reference})
    layer_path = layout.path(layout.blobs("localhost/a:1")[-1].digest)
    assert len(list((tmp_path / "blobs" / "sha256").iterdir())) == 5
    layout.keep(["localhost/a:1"])
    assert layout.references() == ["localhost/a:1"]
    assert layer_path.exists()
    assert layout.keep([]) > 1000
    assert list((tmp_path / "blobs" / "sha256").iterdir()) == []


def test_only_the_newest_versions_of_each_name_are_kept(tmp_path: Path) -> None:
    layout = ImageLayout(tmp_path)
    for reference in ("localhost/a:1", "localhost/b:1", "localhost/a:2", "localhost/a:3"):
        layout.add_image(reference, layer=single_file_layer("f", b""), configuration={})
    assert old_references(layout, versions=2) == ["localhost/a:1"]
    assert old_references(layout, versions=1) == ["localhost/a:1", "localhost/a:2"]


def test_an_image_of_the_same_name_replaces_the_older_one(tmp_path: Path) -> None:
    layout = ImageLayout(tmp_path)
    for content in (b"old", b"new"):
        layout.add_image("localhost/a:1", layer=single_file_layer("f", content), configuration={})
    assert layout.references() == ["localhost/a:1"]
    assert layout.size_bytes("localhost/a:1") > 0
