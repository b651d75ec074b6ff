#!/usr/bin/env bash
# Compiles the readers' crates with a counter for every block, on the stable toolchain:
#   RUSTC_WORKSPACE_WRAPPER=$PWD/crates/fuzz/coverage.sh cargo run --release -p halfbyte-fuzz
# Only the workspace's own crates are compiled anew; dependencies are those of every other build.
set -euo pipefail
case " $* " in
*" --crate-name halfbyte_fuzz "* | *" --crate-name build_script_build "* | *" --print "*) exec "$@" ;;
*" --crate-name "*)
    exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Ccodegen-units=1
    ;;
*) exec "$@" ;;
esac
