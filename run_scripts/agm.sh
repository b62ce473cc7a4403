#!/usr/bin/env bash
# Train AGM (AGMfIRRA, 2025): bash run_scripts/agm.sh CUHK-PEDES|ICFG-PEDES|RSTPReid [further flags]
# It trains as train.py --config_file configs/agm/<dataset>.yaml does. Copy it and change what you like.
set -eu
cd "$(dirname "$0")/.."
dataset=${1:-CUHK-PEDES}
[ $# -gt 0 ] && shift
exec "${PYTHON:-python}" train.py --name agm \
    --img_aug --batch_size 64 --MLM --loss_names 'sdm+mlm+id+cmt' \
    --temperature 0.02 --num_epoch 60 --optimizer Adam --lr 1e-5 --lrscheduler cosine --warmup_epochs 5 \
    --dataset_name "$dataset" "$@"
