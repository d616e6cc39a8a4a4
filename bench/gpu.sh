#!/usr/bin/env bash
# bench/gpu.sh OUT_DIR [PART...]: everything a GPU is needed for, or those parts, in under nine minutes, from the source
# tree. Without `build` it takes the extensions that lie in python/seqkern.
#
#   build       _cpu and _cuda for this card alone
#   tests       pytest -m gpu: the kernel tests' own bodies on the card, and models after .to("cuda")
#   sanitizer   compute-sanitizer (memcheck, racecheck) over a small part of them
#   conformance what the wrappers of src/cuda/device.cuh do here, for tests/conformance
#   bench       against torch with each of its back-ends named: bench/gpu.py
#
# OUT_DIR gets a log of each, gpu.json and gpu.md; the table is printed last. A part that fails or runs out of its time
# is named there and does not stop the others. SEQKERN_GPU_DRY_RUN=1 prints the commands and runs none.
set -u
out=${1:?usage: bench/gpu.sh OUT_DIR [PART...]}
parts=" ${*:2} "
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
export PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)
case ${capability:-none} in
  none) [ -n "${SEQKERN_GPU_DRY_RUN:-}" ] || { echo "bench/gpu.sh: nvidia-smi shows no GPU" >&2; exit 1; }; arch=90a-real ;;
  90) arch=90a-real ;;
  *) arch=$capability-real ;;
esac

summary=()
part() {  # part NAME SECONDS COMMAND...
  local name=$1 seconds=$2 began=$SECONDS status
  shift 2
  [[ "$parts" = "  " || "$parts" = *" $name "* ]] || return 0
  if [ -n "${SEQKERN_GPU_DRY_RUN:-}" ]; then
    echo "$name (at most $seconds s): $*"
    return
  fi
  timeout "$seconds" "$@" >"$out/$name.log" 2>&1
  status=$?
  [ $status = 124 ] && status="out of time"
  summary+=("$name: exit $status after $((SECONDS - began)) s; $(tail -1 "$out/$name.log" | cut -c1-100)")
  [ "$status" = 0 ]
}

build() {
  cmake -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DSEQKERN_CUDA=ON -DSEQKERN_CUDA_ARCHITECTURES="$1" \
    "-DSEQKERN_ONLY_ISA=scalar;avx2" -DPython_EXECUTABLE="$(command -v "$2")" \
    -Dpybind11_DIR="$("$2" -m pybind11 --cmakedir)" &&
    ninja -C build/gpu _cpu _cuda && cp build/gpu/_cpu*.so build/gpu/_cuda*.so python/seqkern/
}
export -f build

part build 200 bash -c "build '$arch' '$python'"
part info 20 "$python" -m seqkern info
workers=$("$python" -c 'import xdist' 2>/dev/null && echo "-n $(($(nproc --all) < 12 ? $(nproc --all) : 12)) -p no:benchmark")
# shellcheck disable=SC2086 # some words or none
part tests 130 "$python" -m pytest -q -m gpu $workers --tb=short --maxfail=400 tests
for tool in memcheck racecheck; do
  part "$tool" 35 compute-sanitizer --tool $tool --error-exitcode 9 \
    "$python" -m pytest -q -m gpu -k "half or strides or index" tests/test_gpu_arrays.py
done
part conformance 60 bash -c "mkdir -p build/gpu && nvcc -std=c++20 -O2 --expt-relaxed-constexpr -gencode=arch=compute_${arch%-real},code=sm_${arch%-real} \
  -Iinclude -Isrc tests/conformance/record.cu -o build/gpu/record && build/gpu/record > '$out/conformance.json'"
part bench 110 "$python" bench/gpu.py "$out"

echo
[ ${#summary[@]} = 0 ] || printf '%s\n' "${summary[@]}"
[ -f "$out/gpu.md" ] && cat "$out/gpu.md"
exit 0
