#!/usr/bin/env bash
# Installs what Fovea needs on Debian 12 (apt and PyPI), and nothing that is there already.
#
#   bash cmake/setup.sh [--tests]        or, from a script with `set -eu`:  source cmake/setup.sh
#
# --tests adds GoogleTest and the Python packages that write golden data.
# When sourced it sets, for the calling script:
#   FOVEA_ROOT     the checkout            FOVEA_CMAKE, FOVEA_CTEST   a CMake of 3.25 or newer
#   FOVEA_STAMPS   what is installed; a build tree made under other stamps is configured again
#   FOVEA_PYTHON   with --tests: the Python that writes golden data
#
# FOVEA_LIBTORCH=DIR  use that LibTorch, or virtual environment with torch, and install no torch.

FOVEA_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

readonly FOVEA_TORCH_SPECS=(torch==2.11.0)
readonly FOVEA_TEST_SPECS=(torchvision==0.26.0 diffusers==0.42.1 transformers==5.23.0
  accelerate protobuf sentencepiece ftfy numpy)
# Whether the packages are there, without the seconds that importing them takes.
readonly FOVEA_TEST_PROBE='
import importlib.util as util, sys
names = "torch torchvision diffusers transformers accelerate sentencepiece ftfy numpy".split()
sys.exit(not all(map(util.find_spec, names)))'
readonly FOVEA_NVCC_SPECS=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl)
readonly FOVEA_REQUIRED_PACKAGES=(g++ cmake ninja-build python3-venv nlohmann-json3-dev libcli11-dev
  libstb-dev libutf8proc-dev)
# Without these a smaller program is built, or more slowly.
readonly FOVEA_OPTIONAL_PACKAGES=(pkg-config ccache mold libavformat-dev libavcodec-dev
  libavutil-dev libswscale-dev libavfilter-dev libgloo-dev)
readonly FOVEA_TEST_PACKAGES=(libgtest-dev libgmock-dev libgloo-dev)

fovea_say() { printf 'setup: %s\n' "$*"; }
fovea_fail() {  # CODE SUBJECT REASON
  printf 'error: %s: %s: %s\n' "$1" "$2" "$3" >&2
  exit "$1"
}

# The packages among "$@" that dpkg does not have, each once, one a line.
fovea_missing_packages() {
  local installed
  installed=$(dpkg-query -W -f '${db:Status-Abbrev}${binary:Package}\n' "$@" 2>/dev/null |
    sed -n 's/^ii //p' | sed 's/:.*//') || true
  local package
  for package in "$@"; do
    # pkg-config is a name that pkgconf takes over on newer systems.
    grep -qxF -e "$package" <<<"$installed" ||
      { [ "$package" = pkg-config ] && grep -qxF pkgconf <<<"$installed"; } || echo "$package"
  done | awk '!seen[$0]++'
}

# Runs a command as root; fails when there is no way to.
fovea_as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    if [ -t 0 ]; then sudo "$@"; else sudo -n "$@"; fi
  else
    echo "not root, and sudo is not there" >&2
    return 1
  fi
}

fovea_apt() {
  fovea_as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq "$@"
}

fovea_install_packages() {
  local required=("${FOVEA_REQUIRED_PACKAGES[@]}") missing=() package log
  [ "$1" = tests ] && required+=("${FOVEA_TEST_PACKAGES[@]}")
  if ! command -v dpkg-query >/dev/null; then
    fovea_say "this is no Debian system: expecting ${required[*]} under the names they have here"
    return 0
  fi
  mapfile -t missing < <(fovea_missing_packages "${required[@]}" "${FOVEA_OPTIONAL_PACKAGES[@]}")
  [ ${#missing[@]} -gt 0 ] || return 0

  fovea_say "installing Debian packages: ${missing[*]}"
  log=$FOVEA_ROOT/.cache/setup-apt.log
  if ! { fovea_apt update && fovea_apt install -y --no-install-recommends "${missing[@]}"; } \
    >"$log" 2>&1 </dev/null; then
    tail -n 5 "$log" >&2
    mapfile -t missing < <(fovea_missing_packages "${required[@]}")
    if [ ${#missing[@]} -gt 0 ]; then
      fovea_fail 4 "apt-get" "cannot install ${missing[*]}; as root: apt-get install ${missing[*]}"
    fi
    mapfile -t missing < <(fovea_missing_packages "${FOVEA_OPTIONAL_PACKAGES[@]}")
    fovea_say "going on without ${missing[*]} (optional; log: $log)"
  fi
  date +%s.%N >"$FOVEA_ROOT/.cache/setup-packages"
}

# The first CMake that is new enough: the one in PATH may be older than Debian's.
fovea_find_cmake() {
  local candidate version
  for candidate in "$(command -v cmake || true)" /usr/bin/cmake /usr/local/bin/cmake; do
    [ -x "$candidate" ] || continue
    version=$("$candidate" --version 2>/dev/null | sed -n 's/^cmake version //p')
    if [ "$(printf '3.25\n%s\n' "$version" | sort -V | head -n 1)" = 3.25 ]; then
      FOVEA_CMAKE=$candidate
      FOVEA_CTEST=$(dirname "$candidate")/ctest
      return 0
    fi
  done
  fovea_fail 4 cmake "need version 3.25 or newer, found none in PATH or /usr/bin"
}

# Whether $1/.fovea-$2 says that exactly these packages were installed completely.
fovea_is_stamped() {  # VENV GROUP SPECS...
  local stamp=$1/.fovea-$2
  shift 2
  [ -f "$stamp" ] && [ "$(<"$stamp")" = "$*" ]
}

# Installs one group of Python packages into .venv; the stamp is written after everything else.
fovea_pip_group() {  # GROUP NOTE SPECS...
  local venv=$FOVEA_ROOT/.venv group=$1 note=$2 log=$FOVEA_ROOT/.cache/setup-pip.log
  shift 2
  fovea_is_stamped "$venv" "$group" "$@" && return 0
  fovea_say "installing into .venv ($note): $*"
  : >"$venv/.fovea-installing"
  if ! "$venv/bin/python3" -m pip install --quiet --no-input --disable-pip-version-check "$@" \
    >"$log" 2>&1 </dev/null; then
    tail -n 5 "$log" >&2
    fovea_fail 4 .venv "pip could not install $* (log: $log)"
  fi
  printf '%s\n' "$*" >"$venv/.fovea-$group.new"
  mv "$venv/.fovea-$group.new" "$venv/.fovea-$group"
  rm "$venv/.fovea-installing"
}

# Makes .venv; one whose installation was cut short is made again, for pip takes a half-unpacked
# package for a whole one.
fovea_make_venv() {
  local venv=$FOVEA_ROOT/.venv
  if [ -e "$venv/.fovea-installing" ]; then
    fovea_say "an earlier installation into .venv was interrupted: starting it again"
    rm -rf "$venv"
  fi
  [ -x "$venv/bin/python3" ] && "$venv/bin/python3" -c 'import pip' 2>/dev/null && return 0
  fovea_say "creating .venv"
  rm -rf "$venv"
  mkdir "$venv"
  : >"$venv/.fovea-installing"
  python3 -m venv "$venv" >"$FOVEA_ROOT/.cache/setup-pip.log" 2>&1 ||
    fovea_fail 4 .venv "python3 -m venv failed (log: $FOVEA_ROOT/.cache/setup-pip.log)"
  rm "$venv/.fovea-installing"
}

fovea_has_gpu() {
  [ -e /proc/driver/nvidia/version ] || { command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1
}

fovea_has_nvcc() {
  command -v nvcc >/dev/null || [ -x "${CUDACXX:-}" ] ||
    [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]
}

fovea_install_python() {  # program | tests
  local venv=$FOVEA_ROOT/.venv own_torch=yes nvcc=no
  FOVEA_PYTHON=$venv/bin/python3
  if [ -n "${FOVEA_LIBTORCH:-}" ]; then
    own_torch=no
    [ -d "$FOVEA_LIBTORCH" ] || fovea_fail 2 FOVEA_LIBTORCH "no such folder: $FOVEA_LIBTORCH"
    FOVEA_LIBTORCH=$(cd "$FOVEA_LIBTORCH" && pwd)
    export FOVEA_LIBTORCH
    [ "$1" = tests ] || return 0
    if "$FOVEA_LIBTORCH/bin/python3" -c "$FOVEA_TEST_PROBE" 2>/dev/null; then
      FOVEA_PYTHON=$FOVEA_LIBTORCH/bin/python3
      return 0
    fi
    fovea_say "no diffusers in $FOVEA_LIBTORCH: the golden data gets a Python of its own in .venv"
  fi
  [ $own_torch = no ] || fovea_has_nvcc || ! fovea_has_gpu || nvcc=yes

  if [ ! -e "$venv/.fovea-installing" ] && [ -x "$venv/bin/python3" ] &&
    fovea_is_stamped "$venv" torch "${FOVEA_TORCH_SPECS[@]}" &&
    { [ "$1" = program ] || fovea_is_stamped "$venv" tests "${FOVEA_TEST_SPECS[@]}"; } &&
    { [ $nvcc = no ] || fovea_is_stamped "$venv" nvcc "${FOVEA_NVCC_SPECS[@]}"; }; then
    return 0
  fi
  fovea_make_venv
  fovea_pip_group torch "4.6 GB on disk, a minute or more" "${FOVEA_TORCH_SPECS[@]}"
  [ "$1" = program ] || fovea_pip_group tests "for golden data, 0.5 GB" "${FOVEA_TEST_SPECS[@]}"
  [ $nvcc = no ] || fovea_pip_group nvcc "a GPU without nvcc; 0.3 GB" "${FOVEA_NVCC_SPECS[@]}"
}

fovea_setup() {  # program | tests
  if [ -z "${HOME:-}" ] || [ ! -w "${HOME:-/}" ]; then
    # pip and ccache want a place to write.
    export HOME=$FOVEA_ROOT/.cache/home
  fi
  mkdir -p "$FOVEA_ROOT/.cache"
  [ "$HOME" != "$FOVEA_ROOT/.cache/home" ] || mkdir -p "$HOME"
  exec 9>"$FOVEA_ROOT/.cache/setup.lock"
  flock -n 9 || { fovea_say "waiting for another set-up of this checkout"; flock 9; }
  fovea_install_packages "$1"
  fovea_install_python "$1"
  exec 9>&-
  fovea_find_cmake
  local stamp
  FOVEA_STAMPS=${FOVEA_LIBTORCH:-.venv}
  for stamp in .cache/setup-packages .venv/.fovea-torch .venv/.fovea-nvcc; do
    [ ! -f "$FOVEA_ROOT/$stamp" ] || FOVEA_STAMPS+=" $(<"$FOVEA_ROOT/$stamp")"
  done
}

# Configures build/ unless it is already: PRESET is "program" or "tests". A tree with tests serves
# the program too, so that demo.sh after test.sh compiles nothing twice.
fovea_configure() {  # PRESET
  local build=$FOVEA_ROOT/build log=$FOVEA_ROOT/.cache/configure.log options=() preset
  local mark=$build/.fovea-configured
  for preset in tests "$1"; do
    if [ -f "$build/build.ninja" ] && [ -f "$mark" ] &&
      [ "$(<"$mark")" = "$preset: $FOVEA_ROOT: $FOVEA_STAMPS" ]; then
      return 0
    fi
  done
  # What CMake found under the old stamps is looked for again.
  options=(-U 'LibTorch_*' -U 'FFMPEG_*' -U FOVEA_NVCC "-DFOVEA_LIBTORCH=${FOVEA_LIBTORCH:-}")
  [ "$1" = program ] || options+=("-DFOVEA_PYTHON=$FOVEA_PYTHON")
  if [ -f "$build/CMakeCache.txt" ] &&
    ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$FOVEA_ROOT" "$build/CMakeCache.txt"; then
    options+=(--fresh)  # the checkout was moved or copied
  fi
  fovea_say "configuring (cmake --preset $1)"
  rm -f "$mark"
  if ! (cd "$FOVEA_ROOT" && "$FOVEA_CMAKE" --preset "$1" "${options[@]}") >"$log" 2>&1; then
    tail -n 25 "$log" >&2
    fovea_fail 4 cmake "configuring failed (log: $log)"
  fi
  sed -n 's/^-- \(Fovea .*\)/setup: \1/p' "$log"
  printf '%s\n' "$1: $FOVEA_ROOT: $FOVEA_STAMPS" >"$mark"
}

# Builds targets of build/ with ninja's [n/m] and the elapsed time.
fovea_build() {  # TARGETS...
  local jobs=${FOVEA_JOBS:-} cores
  cores=$(nproc)
  # A compiler takes 0.7 GB at times: more than two at once is for those who ask.
  [ -n "$jobs" ] || jobs=$((cores < 2 ? cores : 2))
  [ "$cores" -le "$jobs" ] ||
    fovea_say "building with $jobs jobs; FOVEA_JOBS=$cores uses every core"
  NINJA_STATUS='build: [%f/%t, %e s] ' \
    "$FOVEA_CMAKE" --build "$FOVEA_ROOT/build" --parallel "$jobs" --target "$@"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  case "$*" in
    "") fovea_setup program ;;
    --tests) fovea_setup tests ;;
    *) fovea_fail 2 "$1" "usage: bash cmake/setup.sh [--tests]" ;;
  esac
  fovea_say "everything is there"
fi
