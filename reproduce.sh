#!/usr/bin/env bash
# The paper's experiment: five folds, the five scripts each, and one table of all held-out cases (see utils/tasks.py).
#
#     ./reproduce.sh [--vendor-folders] [--recipe NAME] [--set NAME=VALUE ...]
#
# PYTHON names another interpreter.
here=$(dirname "$0")
exec "${PYTHON:-$here/.venv/bin/python}" "$here/utils/tasks.py" reproduce "$@"
