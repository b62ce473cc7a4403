#!/usr/bin/env bash
# Train RDE (CVPR 2024): bash run_scripts/rde.sh CUHK-PEDES|ICFG-PEDES|RSTPReid [further flags]
# It trains as train.py --config_file configs/rde/<dataset>.yaml does. Copy it and change what you like.
set -eu
cd "$(dirname "$0")/.."
dataset=${1:-CUHK-PEDES}
[ $# -gt 0 ] && shift
exec "${PYTHON:-python}" train.py --name rde \
    --img_aug --txt_aug --batch_size 64 --loss_names 'tal+tse' --ccd --tse_mode eval --noisy_rate 0.0 \
    --tau 0.015 --margin 0.1 --select_ratio 0.3 --num_epoch 60 --optimizer Adam --lr 1e-5 --lrscheduler cosine \
    --warmup_epochs 5 \
    --dataset_name "$dataset" "$@"
