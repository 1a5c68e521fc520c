#!/bin/bash
# Everything to be shown on a machine with NVIDIA GPUs and no network, in one go; results go to $OUT.
#
#   OUT=FOLDER bash bench/gpu_run.sh KIT [single|multi]
#
# KIT is a folder with a llama.cpp build of CUDA and what is compared with: up.sh (sets LLAMA_BUNDLE and GPU_DIR),
# make_model.py, peer.py, wheels/ (with hatchling, to install this package). `multi` runs only what needs several GPUs.
set -uo pipefail
kit=$1 what=${2:-single}
. "$kit/up.sh" || exit 1
mkdir -p "$OUT"
began=$(date +%s)
step() { echo "== $1 ($(($(date +%s) - began)) s)"; }

step "install this package"
python3 -m pip install -q --no-index --no-deps --no-build-isolation --no-compile --upgrade --target "$GPU_DIR/app" . || exit 1
export PYTHONPATH=$GPU_DIR/app:$PYTHONPATH LLCUDA_FFI_CACHE=$GPU_DIR/cache LLCUDA_FFI_OFFLINE=1 HF_HUB_OFFLINE=1
libraries=$LD_LIBRARY_PATH
cli() { (cd "$GPU_DIR" && python3 -c 'from llcuda_ffi.cli import main; main()' "$@"); }

step "models"
one=$GPU_DIR/1b.gguf large=$GPU_DIR/8b.gguf
[ -e "$one" ] || python3 "$kit/make_model.py" 1b "$one" --quantize "$LLAMA_BUNDLE" | tail -1
[ -e "$large" ] || python3 "$kit/make_model.py" 8b "$large" --type q4_k_m | tail -1

# from here the package finds cuBLAS and the CUDA runtime by itself
unset LD_LIBRARY_PATH
step "bundle pack"
cli bundle pack "$LLAMA_BUNDLE" -o "$GPU_DIR/packed.tar.gz" || exit 1
export LLCUDA_FFI_BUNDLE=$GPU_DIR/packed.tar.gz
cli bundle install "$LLCUDA_FFI_BUNDLE"

step "doctor"
cli doctor
cli doctor --json > "$OUT/doctor.json"

if [ "$what" = single ]; then
    step "llama-bench"
    export LD_LIBRARY_PATH=$libraries
    "$LLAMA_BUNDLE/llama-bench" -m "$one" -ngl 99 -fa on -p 512 -n 128,256 -r 5 -o json > "$GPU_DIR/llama-bench.json" 2> "$GPU_DIR/err" ||
        tail -5 "$GPU_DIR/err"
    "$LLAMA_BUNDLE/llama-batched-bench" -m "$one" -ngl 99 -fa on -c 32768 -b 2048 -ub 512 -npp 128 -ntg 128 -npl 1,32,64,128 \
        --output-format jsonl 2>&1 | tee "$GPU_DIR/err" | grep '^{' > "$GPU_DIR/batched.jsonl" || tail -5 "$GPU_DIR/err"
    unset LD_LIBRARY_PATH

    step "this package"
    python3 bench/gpu.py -m "$one" --large "$large" --llama-bench "$GPU_DIR/llama-bench.json" \
        --batched-bench "$GPU_DIR/batched.jsonl" --json "$OUT/gpu.json"

    step "tests"
    python3 -m pytest tests/devices/test_gpu.py -q -n 0 -m gpu --llcuda-require=gpu --llcuda-model="$one" \
        -p no:cacheprovider -k 'not two_gpus' 2>&1 | tee "$OUT/pytest.log" | tail -60

    step "llama-cpp-python"
    export LD_LIBRARY_PATH=$libraries
    python3 "$kit/peer.py" "$LLAMA_BUNDLE" "$one" --json "$OUT/peer.json"
    "$LLAMA_BUNDLE/llama-bench" -m "$one" -ngl 99 -fa on -p 0 -n 128 -r 5 -o json 2> /dev/null > "$OUT/llama-bench-after.json"
    cp "$GPU_DIR/llama-bench.json" "$GPU_DIR/batched.jsonl" "$OUT/"
else
    step "several GPUs"
    python3 bench/gpu.py -m "$one" --only verdicts,split --json "$OUT/gpu-multi.json"
    python3 bench/gpu.py -m "$large" --only split --json "$OUT/gpu-multi-8b.json"
    step "tests"
    python3 -m pytest tests/devices/test_gpu.py -q -n 0 -m gpu -k two_gpus --llcuda-require=gpu --llcuda-model="$one" \
        -p no:cacheprovider 2>&1 | tee "$OUT/pytest-multi.log" | tail -40
fi
step "done"
