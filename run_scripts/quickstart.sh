#!/usr/bin/env bash
# Train a first model in about five minutes on two CPU cores: bash run_scripts/quickstart.sh [data folder]
# It generates a synthetic dataset, trains a tiny model on it, tests it on new people, and draws its retrievals.
set -eu
cd "$(dirname "$0")/.."
. run_scripts/setup_python.sh requirements.txt

data=${1:-data}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}   # waiting threads leave the cores to the data loader
"$PYTHON" -m datasets.synthpedes --out "$data" --ids 2500 --val_ids 0 --test_ids 500 --size 96 48
"$PYTHON" train.py --config_file configs/synthpedes/quickstart.yaml --root_dir "$data"
run=$(ls -dt logs/synthpedes/*_quickstart | head -n 1)
"$PYTHON" test.py --config_file "$run/configs.yaml"
"$PYTHON" -m run_scripts.galleries --config_file "$run/configs.yaml"
"$PYTHON" -m run_scripts.retrieve --config_file "$run/configs.yaml" --out "$run/retrieval.png"
