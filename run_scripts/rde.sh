#!/usr/bin/env bash
# RDE (CVPR 2024) on CUHK-PEDES, ICFG-PEDES or RSTPReid: bash run_scripts/rde.sh RSTPReid [further flags]
# The same as train.py --config_file configs/rde/<dataset>.yaml: copy it and change what you like.
set -eu
cd "$(dirname "$0")/.."
dataset=${1:-CUHK-PEDES}
[ $# -gt 0 ] && shift
exec "${PYTHON:-python}" train.py --name rde \
    --img_aug --txt_aug --batch_size 64 --loss_names 'tal+tse' --ccd --tse_mode eval --noisy_rate 0.0 \
    --tau 0.015 --margin 0.1 --select_ratio 0.3 --num_epoch 60 --optimizer Adam --lr 1e-5 --lrscheduler cosine --warmup_epochs 5 \
    --dataset_name "$dataset" "$@"
