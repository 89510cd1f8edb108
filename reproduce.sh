#!/usr/bin/env bash
# The paper's experiment: the five scripts for each fold in order, then one table of all held-out cases.
#
#     ./reproduce.sh [--set NAME=VALUE ...]
#
# FOLDS is 5 unless set. Every fold has an OUTPUT_ROOT of its own, fold_<n> below config's, because what is prepared
# depends on who trains. The weights of every epoch are kept, 31 GB in all, unless you set KEEP_EPOCHS. The same command
# continues where it was interrupted. PYTHON names another interpreter.
set -euo pipefail
here=$(dirname "$0")
python=${PYTHON:-$here/.venv/bin/python}

setting() {  # value of the name $1 in config.py, with the other arguments applied
    PYTHONPATH=$here "$python" -c 'import sys, config; config.load(sys.argv[2:]); print(getattr(config, sys.argv[1]))' "$@"
}

run() {
    echo "$ $*"
    "$python" "$here/$@"
}

folds=$(setting FOLDS "$@")
if [ "$folds" = None ]; then folds=5; fi
output=$(setting OUTPUT_ROOT "$@")
name=$(setting RUN_NAME "$@")
data=$(setting DATA_ROOT "$@")

for ((fold = 0; fold < folds; fold++)); do
    root=$output/fold_$fold
    settings=(--set KEEP_EPOCHS=None "$@" --set "FOLDS=$folds" --set "FOLD=$fold" --set "OUTPUT_ROOT=$root")
    run prepare_data.py "${settings[@]}"
    run model_training.py "${settings[@]}"
    run adversarial_training.py "${settings[@]}"
    run evaluate.py "${settings[@]}"
    segmented=$root/runs/$name/segmented
    if [ ! "$segmented/volumes.csv" -nt "$root/runs/$name/adversarial/best.json" ]; then
        scans=()
        while IFS= read -r folder; do scans+=("$data/$folder"); done < <(
            "$python" -c 'import csv, sys; print(*sorted({row["root"] for row in csv.DictReader(open(sys.argv[1]))}), sep="\n")' \
                "$root/test_data.csv"
        )
        run test.py "${scans[@]}" --output "$segmented" "${settings[@]}"
    fi
done
run evaluate.py --all-folds "$@" --set "FOLDS=$folds"
