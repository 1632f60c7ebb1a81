"""What the repository promises about itself: sizes, pinned packages and a true README."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml
from modelfleet_api.llmdeployment import LLMDeploymentSpec

ROOT = Path(__file__).resolve().parents[1]
CODE_SUFFIXES = {".py", ".go", ".cpp", ".hpp", ".sh"}
MAX_LINES = 400


def tracked_files() -> list[Path]:
    """Every file under version control, or about to be: what a clone has."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_code_file_has_more_than_400_lines() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked_files()
        if path.suffix in CODE_SUFFIXES
    }
    assert len(lengths) > 50
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_folder_shadows_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_the_pins_name_versions_and_no_addresses() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"^[A-Za-z0-9._-]+==\S+( ; .*)?$", line) for line in lines), lines
    assert "://" not in "".join(lines)


def test_every_make_target_that_the_readme_names_exists_and_is_explained() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    explained = set(re.findall(r"^  make ([a-z-]+)", helped, flags=re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", readme))
    assert named <= explained
    assert {"demo", "demo-down", "test", "check", "chat", "scale", "logs"} <= explained


def test_every_phony_target_has_a_line_of_help() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (\S+)", makefile, flags=re.MULTILINE))
    assert phony == set(re.findall(r"^([a-z0-9-]+):.*## ", makefile, flags=re.MULTILINE))


def test_the_manifest_in_the_readme_is_the_shipped_example() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", readme, flags=re.DOTALL)
    assert block is not None
    example = yaml.safe_load((ROOT / "examples" / "smollm2.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(block.group(1)) == example
    LLMDeploymentSpec.model_validate(example["spec"])
