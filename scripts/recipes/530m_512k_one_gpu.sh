#!/usr/bin/env bash
# The 530M model at 524288 tokens of context on one GPU of 141 GB: Lighthouse attention in 26 of its 30 layers, the least
# recomputation that fits.
#
#   scripts/recipes/530m_512k_one_gpu.sh [OPTION…]
#
# The options go to ./train_lighthouse, over the ones here: --plan shows the memory it needs, --dense-layers none is several
# times faster. Started again, it goes on where it was. Environment: DATA and VAL_DATA, globs of token shards with documents of
# this length (data/linux_train_*.bin, data/linux_val_*.bin), OUT (out/530m_512k), and LAUNCHER, as in
# scripts/recipes/530m_98k_two_stage.sh.
# Relative paths are from the current directory, as those of the launchers; the ones in parentheses from the repository.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
show_help "$@"

find_trainer
find_place "${OUT:-$root/out/530m_512k}"
exec "${trainer[@]}" --model 530M --seq-len 524288 --batch-size 1 --global-batch 6 \
    --selection on --levels 3 --pool 4 --topk 2048 --dense-layers 0,1,28,29 --val-selection same \
    --lr 2e-3 --warmup-steps 2000 --save-every 100 \
    --train-data "${DATA:-$root/data/linux_train_*.bin}" --val-data "${VAL_DATA-$root/data/linux_val_*.bin}" "${place[@]}" "$@"
