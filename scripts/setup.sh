#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks (Debian and Ubuntu). Does nothing where all is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(build-essential libopenblas-dev libopenmpi-dev openmpi-bin libcjson-dev libxxhash-dev python3)
cudnn_frontend=nvidia-cudnn-frontend==1.23.0 # headers only

fail() {
    echo "error: $1" >&2
    exit 1
}

have_nvcc() { command -v nvcc > /dev/null || [ -x /usr/local/cuda/bin/nvcc ]; }
have_frontend() { [ -f .deps/python/include/cudnn_frontend.h ]; }
is_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2> /dev/null)" = installed ]; }

install_packages() {
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo > /dev/null || fail "these packages are missing, and neither root nor sudo is here: $*"
        root=(sudo)
    fi
    echo "installing $*"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" > /dev/null
}

if have_nvcc && ! have_frontend && ! python3 -m pip --version > /dev/null 2>&1; then
    packages+=(python3-pip)
fi
command -v dpkg-query > /dev/null || fail "this is neither Debian nor Ubuntu: install your system's ${packages[*]}"
missing=()
for package in "${packages[@]}"; do
    is_installed "$package" || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then install_packages "${missing[@]}"; fi

if have_nvcc && ! have_frontend; then
    echo "installing $cudnn_frontend into .deps/python"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target .deps/python "$cudnn_frontend"
fi
echo "setup: all that the $(if have_nvcc; then echo CUDA and the CPU build need; else echo CPU build needs; fi) is installed"
