#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks (Debian and Ubuntu). Does nothing where all is there.
#
#   scripts/setup.sh              what building and testing need
#   scripts/setup.sh --develop    and what `make lint` and `make fuzz-check` do
#   scripts/setup.sh --plot       and what dev/plot and the pictures of dev/evaluate/ablate.py do
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
show_help "$@"

packages=(build-essential libopenblas-dev libopenmpi-dev openmpi-bin libcjson-dev libxxhash-dev python3)
developer_packages=(clang shellcheck)
cudnn_frontend=nvidia-cudnn-frontend==1.23.0 # headers only
linters=(clang-format==14.0.6 ruff==0.17.6)  # other versions would report other faults

have_nvcc() { command -v nvcc > /dev/null || [ -x /usr/local/cuda/bin/nvcc ]; }
lack_frontend() { have_nvcc && [ ! -f .deps/python/include/cudnn_frontend.h ]; }
lack_plot() { $plot && ! cmp -s dev/plot/requirements.txt .deps/plot/requirements.txt; }
lack_linters() { $develop && [ "$(cat .deps/lint/versions 2> /dev/null)" != "${linters[*]}" ]; }
is_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2> /dev/null)" = installed ]; }

# Installs the given packages that are missing.
install_packages() {
    local root=() missing=()
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo > /dev/null || fail "these packages are missing, and neither root nor sudo is here: ${missing[*]}"
        root=(sudo)
    fi
    echo "installing ${missing[*]}"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
}

# Installs packages of PyPI, as pip's arguments name them, into a directory of their own, which is emptied first.
install_python() {
    local directory=$1
    shift
    echo "installing $* into $directory"
    rm -rf "$directory"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$directory" "$@"
}

develop=false
plot=false
case $#,${1-} in
    0,) ;;
    1,--develop) develop=true ;;
    1,--plot) plot=true ;;
    *) fail "$*: expected nothing, --develop or --plot" ;;
esac

if $develop; then packages+=("${developer_packages[@]}"); fi
if { lack_frontend || lack_linters || lack_plot; } && ! python3 -m pip --version > /dev/null 2>&1; then packages+=(python3-pip); fi
command -v dpkg-query > /dev/null || fail "this is neither Debian nor Ubuntu: install your system's ${packages[*]}"
install_packages "${packages[@]}"
# The package with the runtime of clang's fuzzers and sanitizers has clang's version in its name.
if $develop; then install_packages "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"; fi

if lack_frontend; then install_python .deps/python "$cudnn_frontend"; fi
if lack_linters; then
    install_python .deps/lint "${linters[@]}"
    echo "${linters[*]}" > .deps/lint/versions
fi
if lack_plot; then
    install_python .deps/plot -r dev/plot/requirements.txt
    cp dev/plot/requirements.txt .deps/plot/
fi
echo "setup: all that the $(if have_nvcc; then echo CUDA and the CPU build need; else echo CPU build needs; fi) is installed"
