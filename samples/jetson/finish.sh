#!/bin/sh
# Builds, runs and judges a bundle's engine on the device, and fetches what came out.
# usage: sh finish.sh HOST BUNDLE; ends with the exit code of build_engine.py.
set -eu
host=$1
bundle=$2
name=$(basename "$bundle")
rm -f "$bundle/result.json"
scp -q -r "$bundle" "$host:"
code=0
ssh "$host" "cd '$name' && rm -f result.json && python3 build_engine.py" || code=$?
scp -q "$host:$name/result.json" "$bundle/" || [ "$code" -ne 0 ]  # without tensorrt there is none
exit "$code"
