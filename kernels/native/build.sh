#!/bin/sh
# Compiles the library: build.sh OUTPUT. Needs a C++20 compiler (GCC >= 11 or Clang >= 14) as $CXX or c++.
# One file is for any x86-64; the rest is only called where it says that the CPU has AVX-512 with bfloat16.
set -eu
cd "$(dirname "$0")"
output="$1"
compiler="${CXX:-c++}"
# Hidden: only the C interface is seen from outside, so that nothing here is mixed up with what torch brings.
common="-std=c++20 -O3 -Wall -Wextra -Werror -Wno-maybe-uninitialized -Wno-uninitialized -fPIC -pthread -fvisibility=hidden"
instructions="-march=x86-64-v4 -mavx512bf16"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
compiling=""
for source in *.cpp; do
  options="$common"
  [ "$source" = supported.cpp ] || options="$common $instructions"
  # shellcheck disable=SC2086 # a list of words
  "$compiler" $options -c "$source" -o "$scratch/${source%.cpp}.o" &
  compiling="$compiling $!"
done
failed=0
for process in $compiling; do wait "$process" || failed=1; done
[ "$failed" = 0 ] || exit 1
# The C++ runtime goes in, so that the library needs the C library alone: what is used of it, and seen by nobody else
# (-fvisibility does not reach namespace std).
echo '{ global: modelfleet_*; local: *; };' >"$scratch/exports"
"$compiler" -shared -pthread -static-libstdc++ -static-libgcc -Wl,--gc-sections \
  -Wl,--version-script="$scratch/exports" "$scratch"/*.o -o "$scratch/library"
# Replaced in one step, as others may have it loaded.
mkdir -p "$(dirname "$output")"
mv "$scratch/library" "$output.$$" && mv "$output.$$" "$output"
