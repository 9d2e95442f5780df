#!/usr/bin/env bash
# The 530M model at 1048576 tokens of context on one GPU of 141 GB: Lighthouse attention in all layers, the least
# recomputation that fits.
#
#   scripts/recipes/530m_1m_one_gpu.sh [OPTION…]
#
# The options go to ./train_lighthouse, over the ones here: --plan shows the memory it needs. Started again, it goes on where it
# was. Environment: DATA and VAL_DATA, globs of token shards with documents of this length (data/linux_train_*.bin,
# data/linux_val_*.bin), OUT (out/530m_1m), and LAUNCHER, as in scripts/recipes/530m_98k_two_stage.sh.
# Relative paths are from the current directory, as those of the launchers; the ones in parentheses from the repository.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
show_help "$@"

find_trainer
find_place "${OUT:-$root/out/530m_1m}"
exec "${trainer[@]}" --model 530M --seq-len 1048576 --batch-size 1 --global-batch 3 \
    --selection on --levels 4 --pool 4 --topk 4096 --dense-layers none --val-selection same \
    --lr 2e-3 --warmup-steps 2000 --save-every 100 \
    --train-data "${DATA:-$root/data/linux_train_*.bin}" --val-data "${VAL_DATA-$root/data/linux_val_*.bin}" "${place[@]}" "$@"
