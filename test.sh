#!/usr/bin/env bash
# Sets up, builds everything and runs every test. The last line is "N passed, N failed, N skipped".
#
#   ./test.sh                   all tests
#   ./test.sh -R house -V       arguments go to ctest
#
# Environment: FOVEA_JOBS (compile jobs), FOVEA_LIBTORCH (a LibTorch of your own).
set -euo pipefail
unset CDPATH
source "$(dirname "${BASH_SOURCE[0]}")/cmake/setup.sh"

fovea_setup tests
fovea_configure tests
if ! fovea_build all; then
  echo "FAILED: the build, see above; no test ran"
  echo "0 passed, 1 failed, 0 skipped"
  exit 1
fi

results=$FOVEA_ROOT/build/test-results.xml
rm -f "$results"
status=0
"$FOVEA_CTEST" --test-dir "$FOVEA_ROOT/build" -j2 --output-junit "$results" "$@" || status=$?
python3 "$FOVEA_ROOT/tests/summarize.py" "$results" "$status"
