#!/bin/sh
# The golden streams, and the golden arrays, on little- and big-endian machines and at every SIMD level: equal bytes or it fails.
#   scripts/cross_arch.sh [MODEL [PACK|- [STREAMS]]]
# Needs (Debian): apt-get install -y gcc qemu-user gcc-aarch64-linux-gnu gcc-s390x-linux-gnu libc6-dev-arm64-cross libc6-dev-s390x-cross
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
model=${1:-$root/src/nbmf/models/base.nbm}
streams=${3:-$root/tests/golden/streams.txt}
pack=${2:-$root/tests/golden/golden.nbp}
[ -e "$pack" ] || pack=-
codec=$root/src/nbmf/codec
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

compile() {   # the flags of setup.py
    flags="-O3 -fwrapv -std=c11 -D_GNU_SOURCE -pthread -Wall -I $codec"
    for part in kernel kernel_model kernel_vector; do
        "$1" $flags -c -o "$build/$2-$part.o" "$codec/$part.c"
    done
    "$1" $flags -static -o "$build/$2" "$root/tests/stress/golden_main.c" "$build/$2-kernel.o" "$build/$2-kernel_model.o"
    "$1" $flags -static -o "$build/$2-vectors" "$root/tests/stress/golden_vectors.c" "$build/$2-kernel.o" \
        "$build/$2-kernel_model.o" "$build/$2-kernel_vector.o" -lm
}

failed=0
check() {   # name, then the command; 3 means that this machine lacks the level
    name=$1; shift
    status=0
    "$@" || status=$?
    case $status in
        0) echo "$name: equal" ;;
        3) echo "$name: not on this machine" ;;
        *) echo "$name: FAILED ($status)"; failed=1 ;;
    esac
}

python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
"$python" "$root/scripts/vector_streams.py" > "$build/vectors"

compile gcc native
for level in plain avx2 avx2-vnni avx512; do
    check "native $level" "$build/native" "$model" "$pack" "$streams" $level
    check "native $level, arrays" "$build/native-vectors" "$build/vectors" $level
done
for arch in aarch64 s390x; do
    compile $arch-linux-gnu-gcc $arch
    check "$arch plain" qemu-$arch "$build/$arch" "$model" "$pack" "$streams" plain
    check "$arch plain, arrays" qemu-$arch "$build/$arch-vectors" "$build/vectors" plain
done
exit $failed
