#!/usr/bin/env bash
# From a fresh machine to a trained model in a few minutes, with or without a GPU: installs what is missing, builds,
# makes token shards, trains a small model, and resumes it from its checkpoint.
#
#   scripts/quickstart.sh            on the source of Python's standard library
#   scripts/quickstart.sh FILE…      on these files and directories
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=out/quickstart
steps=200

say() { echo "== $*"; }

if [ $# -eq 0 ]; then
    scripts/setup.sh
    set -- "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"/*.py
else
    files=()
    for file in "$@"; do files+=("$(realpath -m "$OLDPWD/$file")"); done
    scripts/setup.sh
fi
