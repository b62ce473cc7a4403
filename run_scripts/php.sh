#!/usr/bin/env bash
# PHP (2025-26) on CUHK-PEDES, ICFG-PEDES or RSTPReid, by its own command: bash run_scripts/php.sh RSTPReid [further flags]
# The same as train.py --config_file configs/php/<dataset>.yaml: copy it and change what you like.
set -eu
cd "$(dirname "$0")/.."
dataset=${1:-CUHK-PEDES}
[ $# -gt 0 ] && shift
aux_factor=0.5
[ "$dataset" = CUHK-PEDES ] && aux_factor=3.0
# The released code attends across the batch (--php_attention batch), and its embeddings depend on their neighbours: docs/evaluation.md
exec "${PYTHON:-python}" train.py --name php \
    --img_aug --batch_size 64 --test_batch_size 64 --loss_names 'sdm+itc+aux' --itc_loss_weight 5.0 --aux_factor $aux_factor \
    --php_attention slots --num_experts 4 --topk 2 --reduction 8 --moe_layers 4 --moe_heads 8 --cnum 9 \
    --transformer_lr_factor 1.0 --moe_lr_factor 2.0 \
    --temperature 0.02 --num_epoch 60 --optimizer Adam --lr 3e-6 --lrscheduler cosine --warmup_epochs 5 \
    --dataset_name "$dataset" "$@"
