#!/usr/bin/env bash
# Train FMFA (ACM TOMM 2026): bash run_scripts/fmfa.sh CUHK-PEDES|ICFG-PEDES|RSTPReid [further flags]
# It trains as train.py --config_file configs/fmfa/<dataset>.yaml does. Copy it and change what you like.
set -eu
cd "$(dirname "$0")/.."
dataset=${1:-CUHK-PEDES}
[ $# -gt 0 ] && shift
exec "${PYTHON:-python}" train.py --name fmfa \
    --img_aug --batch_size 64 --MLM --loss_names 'a-sdm+mlm+id+efa' --minmax_loss_weight 1.0 --temperature 0.02 \
    --num_epoch 60 --optimizer Adam --lr 5e-6 --lr_rules flat --lrscheduler cosine --warmup_epochs 5 \
    --dataset_name "$dataset" "$@"
