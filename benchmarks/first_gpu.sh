#!/usr/bin/env bash
# Check and measure everything on a GPU, in under 10 minutes: versions, tests, sanitizers, the kernel, whole runs.
#
#     benchmarks/first_gpu.sh FOLDER [--dry]
#
# Each step writes its log, and its results as JSON, into FOLDER; a step that fails does not stop the next. A short table
# comes last. Needs the packages of the extra `test`; PYTHON names the interpreter (python3). compute-sanitizer and ncu
# are used if they are there. --dry does on the CPU what can be done there, to see that the script works.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?expected a folder for the results}
DRY=${2:-}
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
: > "$OUT/steps.txt"

step() { # name, seconds it may take, command
    local name=$1 limit=$2 begun=$SECONDS result=ok
    shift 2
    timeout "$limit" "$@" > "$OUT/$name.log" 2>&1 || result="failed ($?)"
    printf '%-14s %-12s %4d s\n' "$name" "$result" $((SECONDS - begun)) | tee -a "$OUT/steps.txt"
}

skip() { # name, reason
    printf '%-14s %s\n' "$1" "skipped: $2" | tee -a "$OUT/steps.txt"
}

sanitize() { # tool
    if command -v compute-sanitizer > /dev/null; then
        step "$1" 240 compute-sanitizer --tool "$1" --report-api-errors no --error-exitcode 9 "$PYTHON" benchmarks/every_variant.py
    else
        skip "$1" "no compute-sanitizer"
    fi
}

run_speed() { # precision
    step "run-$1" 60 bash -c "'$PYTHON' -m roialign_cli bench --json --precision $1 $RUN > '$OUT/run-$1.json'"
}

step versions 60 bash -c "nvidia-smi; '$PYTHON' -VV; '$PYTHON' -m pip list"
step doctor 60 "$PYTHON" -m roialign_cli doctor
if [[ $DRY == --dry ]]; then
    RUN="--device cpu --images 2 --boxes 20 --runs 1"
    step tests 120 "$PYTHON" -m pytest tests/gpu -q -p no:cacheprovider
    step variants 60 "$PYTHON" benchmarks/every_variant.py --dry
    skip memcheck dry
    skip racecheck dry
    step kernel 120 "$PYTHON" benchmarks/gpu.py --dry --rounds 1 --json "$OUT/kernel.json"
    skip ncu dry
else
    RUN="--device cuda --images 50 --boxes 100 --runs 2"
    # Nothing is timed yet, so these run at once
    step tests 240 env ROIALIGN_REQUIRE_GPU=1 "$PYTHON" -m pytest tests/gpu -q -p no:cacheprovider &
    step variants 90 "$PYTHON" benchmarks/every_variant.py &
    sanitize memcheck &
    sanitize racecheck &
    wait
    step kernel 180 "$PYTHON" benchmarks/gpu.py --rounds 9 --json "$OUT/kernel.json"
    if command -v ncu > /dev/null; then
        for dtype in float32 bfloat16; do
            step "ncu-$dtype" 45 ncu --set full --launch-count 2 --kernel-name roi_align \
                "$PYTHON" benchmarks/every_variant.py --case 0 --dtype $dtype
        done
    else
        skip ncu "not installed"
    fi
fi
for precision in float32 tf32 bfloat16; do
    run_speed $precision
done

echo
cat "$OUT/steps.txt"
tail -n 3 "$OUT/tests.log" "$OUT/variants.log"
"$PYTHON" - "$OUT" <<'TABLE'
import json, pathlib, sys

out = pathlib.Path(sys.argv[1])
try:
    kernel = json.loads((out / "kernel.json").read_text())
    print(f"\nkernel on {kernel['machine']['device']}, times as fast as torchvision's (geometric mean):")
    print("  " + ", ".join(f"{name} {value:.1f}" for name, value in kernel["means"].items()))
    for row in kernel["cases"]:
        times = row["milliseconds"]
        shown = ", ".join(f"{name} {value:.3f}" for name, value in times.items())
        print(f"  {row['case']}, {row['type']}: {shown} ms; floor {row['floor']:.3f}")
except (OSError, ValueError) as error:
    print(f"kernel: no result: {error}")
for precision in ("float32", "tf32", "bfloat16"):
    try:
        speed = json.loads((out / f"run-{precision}.json").read_text())["seconds_per_image"]
        stages = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in speed["stages"].items())
        ratio = speed["script"] / speed["whole"]
        print(f"run in {precision}, ms per image: {stages}; whole {1e3 * speed['whole']:.1f}, {ratio:.2f} times the script")
    except (OSError, ValueError) as error:
        print(f"run in {precision}: no result: {error}")
TABLE
