#!/usr/bin/env bash
# From a fresh clone to a trained model and a picture of its retrievals, in about five minutes on two CPU cores: makes a
# synthetic dataset, trains a tiny model on it, tests it on people it has never seen, and draws what it finds.
set -eu
cd "$(dirname "$0")/.."
. run_scripts/setup_python.sh requirements.txt

data=${1:-data}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}   # threads that wait leave the cores to those that load data
"$PYTHON" -m datasets.synthpedes --out "$data" --ids 2500 --val_ids 0 --test_ids 500 --size 96 48
"$PYTHON" train.py --config_file configs/synthpedes/quickstart.yaml --root_dir "$data"
run=$(ls -dt logs/synthpedes/*_quickstart | head -n 1)
"$PYTHON" test.py --config_file "$run/configs.yaml"
"$PYTHON" run_scripts/galleries.py --config_file "$run/configs.yaml"
"$PYTHON" run_scripts/retrieve.py --config_file "$run/configs.yaml" --out "$run/retrieval.png"
