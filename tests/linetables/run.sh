#!/bin/sh
# usage: run.sh CHECK_LINES PYTHON [--with-tests]: compares the decoded line tables of PYTHON's standard library with
# what PYTHON says of them.
set -eu
check=$1
python=$2
shift 2
dump=$(mktemp)
trap 'rm -f "$dump"' EXIT
"$python" -I "$(dirname "$0")/dump.py" "$@" >"$dump"
"$check" <"$dump"
