#!/usr/bin/env bash
# Train A2TE (2025): bash run_scripts/a2te.sh CUHK-PEDES|ICFG-PEDES|RSTPReid [further flags]
# It trains as train.py --config_file configs/a2te/<dataset>.yaml does. Copy it and change what you like.
set -eu
cd "$(dirname "$0")/.."
dataset=${1:-CUHK-PEDES}
[ $# -gt 0 ] && shift
attribute_weight=1.0 detail_loss_weight=0.1
[ "$dataset" = RSTPReid ] && attribute_weight=0.5
[ "$dataset" = ICFG-PEDES ] && detail_loss_weight=0.01
exec "${PYTHON:-python}" train.py --name a2te \
    --img_aug --batch_size 64 --MLM --loss_names 'sdm+id+amm+detail' --freeze_conv1 \
    --pool_ratio 0.3 --attribute_weight $attribute_weight --detail_loss_weight $detail_loss_weight \
    --temperature 0.01 --alpha 0.5 --num_epoch 60 --optimizer Adam --lr 1e-5 --lrscheduler cosine --warmup_epochs 5 \
    --dataset_name "$dataset" "$@"
