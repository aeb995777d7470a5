#!/usr/bin/env bash
# From a fresh machine to a video: sets up, builds the program, generates build/demo/demo.mp4.
#
#   ./demo.sh                                    the built-in prompt
#   ./demo.sh "a blue cube spins, static camera" --steps 20 --seed 7
#
# Everything after the prompt goes to `fovea generate`. Environment: FOVEA_JOBS (compile jobs),
# FOVEA_LIBTORCH (a LibTorch of your own).
set -euo pipefail
unset CDPATH
source "$(dirname "${BASH_SOURCE[0]}")/cmake/setup.sh"

prompt="a red sphere rolls left and a blue cube spins, static camera"
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  prompt=$1
  shift
fi

# Prints the value of an option given as --name VALUE or --name=VALUE; fails when it is not there.
value_of() {  # OPTION ARGUMENTS...
  local option=$1
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      "$option") printf '%s' "${2:-}" && return 0 ;;
      "$option="*) printf '%s' "${1#*=}" && return 0 ;;
    esac
    shift
  done
  return 1
}

fovea_setup program
fovea_configure program
fovea_build fovea

folder=$FOVEA_ROOT/build/demo
out=$folder/demo.mp4
grep -q libavformat "$FOVEA_ROOT/build/build.ninja" || out=$folder/demo-%03d.png
model=$FOVEA_ROOT/assets/models/mini
defaults=(--num-frames 17 --height 128 --width 128 --steps 20)  # half a minute on two cores
defaults+=(--seed 1 --fps 12 --model "$model" --out "$out" --report "$folder/report.json")
value_of --prompts "$@" >/dev/null || defaults+=(--prompt "$prompt")

# What the user asks for goes before our defaults.
arguments=("$@")
for ((i = 0; i < ${#defaults[@]}; i += 2)); do
  value_of "${defaults[i]}" "$@" >/dev/null || arguments+=("${defaults[i]}" "${defaults[i + 1]}")
done
[[ " $* " == *" --overwrite "* ]] || arguments+=(--overwrite)
out=$(value_of --out "${arguments[@]}")
report=$(value_of --report "${arguments[@]}")

mkdir -p "$folder"
rm -f "$folder/report.json"
echo "demo: generating: $(value_of --prompt "${arguments[@]}" || value_of --prompts "$@")"
"$FOVEA_ROOT/build/bin/fovea" generate "${arguments[@]}"

python3 - "$report" "$out" <<'PY'
import glob, json, os, re, sys

report, out = sys.argv[1:]
pattern = os.path.join(glob.escape(out), "*") if os.path.isdir(out) else glob.escape(out)
files = glob.glob(re.sub(r"%0?\d*d", "*", pattern))
size = sum(os.path.getsize(path) for path in files)
count = f" in {len(files)} files" if len(files) > 1 else ""
print(f"demo: wrote {out} ({size:,} bytes{count})")
seconds = json.load(open(report)).get("seconds", {})
for stage, value in seconds.items():
    print(f"demo:   {stage:<12} {value:8.2f} s")
PY
