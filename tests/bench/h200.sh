#!/usr/bin/env bash
# Everything that the results of one H200 are made of, in slices below eight minutes each: what is
# measured, and behind it what is checked there.
#
#   tests/bench/h200.sh [--build DIR] [--python PYTHON] [--out DIR] SLICE ...
#   tests/bench/h200.sh --list
#
# The programs must be built: ninja -C build all sm90_bench methods_bench wan_bench
# --out writes NAME-YYYYMMDD.txt of each slice, see docs/benchmarks/README.md; else all is printed.
# FOVEA_COMMIT says what was built where the tree came without its history.
set -euo pipefail
cd "$(dirname "$0")/../.."

build=build
python=.venv/bin/python
out=
slices=()

# name: command
table() {
  local bench="$build/bin/fovea bench attention --device cuda --quiet --dtype"
  local check="--gtest_brief=1 --gtest_filter" sanitize="compute-sanitizer --error-exitcode 1"
  local blocks="topk:density=0.05|0.1|0.25|0.5,topk:density=0.1:block_q=64:block_kv=64"
  cat <<END
kernel: $build/tests/sm90_bench
kernel-backward: $build/tests/sm90_bench --only backward
kernel-8bit: $build/tests/sm90_bench --quick --only 8-bit
kernel-sm80: $build/tests/sm90_bench --quick --sm80
linear: $build/tests/sm90_linear
methods: $build/tests/methods_bench
methods-sla: $build/tests/methods_bench --only sla
methods-planners: $build/tests/methods_bench --only planners
methods-dense: $build/tests/methods_bench --only dense
bench-dense: $bench bf16,fp16 --methods dense \
--shape 24x4608x128,30x17776x64,12x32760x128,40x75600x128
bench-blocks: $bench bf16 --grid 21x30x52 --heads 12 --methods $blocks,topk:density=0.1:tile=4,8,4
bench-methods1: $bench bf16 --grid 21x30x52 --heads 12 --duration 20 --methods \
radial,window:tile=6,8,8:window=3,3,3,neighborhood:window=9,15,15
bench-methods2: $bench bf16 --grid 21x30x52 --heads 12 --duration 20 --methods \
sparge,xattention,psa,sla:density=0.05:projection=identity
bench-svg2: $bench bf16 --grid 21x30x52 --heads 12 --methods svg2 --repeats 3 --duration 0
flex: $python tests/bench/flex_attention_bench.py
wan-1.3b: $build/bin/wan_bench transformer 1.3b 81 480 832 5
wan-1.3b-diffusers: $python tests/bench/wan_bench.py transformer 1.3b 81 480 832 5 cuda bf16 cudnn
wan-14b: $build/bin/wan_bench transformer 14b 81 720 1280 3
wan-14b-diffusers: $python tests/bench/wan_bench.py transformer 14b 81 720 1280 3 cuda bf16 cudnn
wan-vae: $build/bin/wan_bench vae - 81 720 1280 3
wan-vae-diffusers: $python tests/bench/wan_bench.py vae - 81 720 1280 3
check-forward: $build/tests/sm90_test $check=Sm90Layout*:Sm90Forward*:Sm90Refusals*
check-backward: $build/tests/sm90_test $check=Sm90Backward*
check-8bit: $build/tests/sm90_test $check=Sm90EightBit*:Sm90QuantizeBytes*
check-sm80: $build/tests/sm80_test $check=*-Sm80Shares*
check-sm80-shares: $build/tests/sm80_test $check=Sm80Shares*
check-executors: $build/tests/cuda_executor_test $check=*/cuda_sm*
check-graphs: $build/tests/cuda_graph_test $check=*
check-attention: $build/tests/attention_test $check=Selectors*:KMeans*:Svg2*:*Sla*:*TopK*:Mean*
check-rules-sm90: $build/tests/conformance_executors_test $check=*cuda_sm90*
check-rules-sm80: $build/tests/conformance_executors_test $check=*cuda_sm80*
sanitize-forward: $sanitize $build/tests/sm90_test $check=Sm90Layout*:Sm90Forward*-*Repeat*
sanitize-backward: $sanitize $build/tests/sm90_test $check=Sm90Backward.*-*Repeat*:*Waves*
sanitize-8bit: $sanitize $build/tests/sm90_test $check=Sm90EightBit*:Sm90QuantizeBytes*-*Repeat*
sanitize-sm80: $sanitize $build/tests/sm80_test $check=*-*Repeat*:*EveryRun*:Sm80Shares*
END
}

while (($# > 0)); do
  case $1 in
    --build) build=$2; shift ;;
    --python) python=$2; shift ;;
    --out) out=$2; shift ;;
    --list) table; exit 0 ;;
    -*) echo "usage: tests/bench/h200.sh [--build DIR] [--python PYTHON] [--out DIR] SLICE ..." >&2
        exit 2 ;;
    *) slices+=("$1") ;;
  esac
  shift
done

head_of() {
  local changed=
  git diff --quiet HEAD 2>/dev/null || changed=+
  echo "commit:  ${FOVEA_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)$changed}"
  echo "device:  $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1)," \
       "$("$python" -c 'import torch; print("torch", torch.__version__)' 2>/dev/null || true)"
  echo "date:    $(date +%F)"
  echo "command: $1"
  echo
}

status=0
for slice in "${slices[@]}"; do
  line=$(table | grep "^$slice: ") || { echo "no slice '$slice', see --list" >&2; exit 2; }
  command=${line#*: }
  read -ra words <<<"$command"
  if [[ -n $out ]]; then
    file=$out/$slice-$(date +%Y%m%d).txt
    [[ ! -e $file ]] || { echo "$file is there already" >&2; exit 7; }
    { head_of "$command"; timeout 480 "${words[@]}"; } >"$file.part" || { status=1; continue; }
    mv "$file.part" "$file"
    echo "$file"
  else
    head_of "$command"
    timeout 480 "${words[@]}" || status=1
  fi
done
exit $status
