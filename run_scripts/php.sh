#!/usr/bin/env bash
# Train PHP (2025-26): bash run_scripts/php.sh CUHK-PEDES|ICFG-PEDES|RSTPReid [further flags]
# It trains as train.py --config_file configs/php/<dataset>.yaml does. Copy it and change what you like.
set -eu
cd "$(dirname "$0")/.."
dataset=${1:-CUHK-PEDES}
[ $# -gt 0 ] && shift
aux_factor=0.5
[ "$dataset" = CUHK-PEDES ] && aux_factor=3.0
# PHP's published code uses --php_attention batch, whose embeddings depend on the batch: see docs/evaluation.md.
exec "${PYTHON:-python}" train.py --name php \
    --img_aug --batch_size 64 --test_batch_size 64 --loss_names 'sdm+itc+aux' --itc_loss_weight 5.0 \
    --aux_factor $aux_factor --php_attention slots --num_experts 4 --topk 2 --reduction 8 \
    --moe_layers 4 --moe_heads 8 --cnum 9 \
    --transformer_lr_factor 1.0 --moe_lr_factor 2.0 \
    --temperature 0.02 --num_epoch 60 --optimizer Adam --lr 3e-6 --lrscheduler cosine --warmup_epochs 5 \
    --dataset_name "$dataset" "$@"
