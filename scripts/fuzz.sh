#!/bin/sh
# Fuzzes the kernel under AddressSanitizer and UndefinedBehaviorSanitizer, and prints executions and findings.
#   scripts/fuzz.sh decode|model [RUNS [MAX_LEN [FOLDER]]]
# FOLDER keeps the build, the corpus, the findings (crash-*, oom-*, timeout-*) and log; a temporary one by default.
# NBMF_FUZZ_MODEL: the model file, src/nbmf/models/base.nbm by default.
# Needs (Debian 12): apt-get update && apt-get install -y clang libclang-rt-14-dev
set -eu
target=${1:-decode}
runs=${2:-1000000}
max_len=${3:-32}
folder=${4:-$(mktemp -d)}
root=$(cd "$(dirname "$0")/.." && pwd)
codec=$root/src/nbmf/codec
samples=$root/src/nbmf/samples/samples.jsonl
base=${NBMF_FUZZ_MODEL:-$root/src/nbmf/models/base.nbm}
case $target in decode | model) ;; *) echo "decode or model, not $target" >&2; exit 2 ;; esac
mkdir -p "$folder/corpus-$target" "$folder/findings-$target"

# Comparisons of hashes tell the fuzzer nothing, so they are not traced. -fwrapv defines signed overflow, so it is no finding. Clang passes over GCC's target pragma, so its own takes that one's place.
sed -e 's/^#pragma GCC target(\(.*\))/#pragma clang attribute push(__attribute__((target(\1))), apply_to = function)/' \
    -e '/^#pragma GCC push_options/d' -e 's/^#pragma GCC pop_options/#pragma clang attribute pop/' "$codec/kernel.c" >"$folder/kernel.c"
clang -g -O2 -fwrapv -std=c11 -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined -fno-sanitize-coverage=trace-cmp,trace-div,trace-gep -fno-sanitize=signed-integer-overflow -fno-sanitize-recover=all \
    -I "$codec" -o "$folder/fuzz_$target" "$root/tests/stress/fuzz_$target.c" "$folder/kernel.c" "$codec/kernel_model.c"

# A model with a primer and a pack made for it, so that every path runs. Cut down to the fewest lines for fuzz_model, which copies the file each time.
python3 - "$base" "$samples" "$target" "$folder" <<'PY'
import json
import sys
from pathlib import Path

base, samples, target, folder = Path(sys.argv[1]).read_bytes(), sys.argv[2], sys.argv[3], Path(sys.argv[4])
HEADER, ENTRY, LINE = 64, 32, 64
values = [json.loads(line)["value"] for line in Path(samples).read_text(encoding="utf-8").splitlines()]
texts = [value if isinstance(value, str) else json.dumps(value, separators=(",", ":")) for value in values]


def sections(data):
    for i in range(int.from_bytes(data[6:8], "little")):
        e = data[HEADER + i * ENTRY :][:ENTRY]
        at, n = (int.from_bytes(e[k : k + 8], "little") for k in (16, 24))
        yield e[:16].rstrip(b"\0"), data[at : at + n]


def build(magic, name_id, parts):
    table, body, at = b"", b"", HEADER + ENTRY * len(parts)
    for name, data in parts.items():
        at += -at % 64
        body += bytes(at - HEADER - ENTRY * len(parts) - len(body)) + data
        table += name.ljust(16, b"\0") + at.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        at += len(data)
    head = magic + bytes([1, 1]) + len(parts).to_bytes(2, "little") + at.to_bytes(8, "little") + name_id
    return head.ljust(HEADER, b"\0") + table + body


parts, lines = dict(sections(base)), 64
text = "\n".join(texts[::4]).encode()[:20000]
if target == "model":
    rows = memoryview(parts[b"order2_row"]).cast("B")
    cut = bytearray(rows)
    for i in range(0, len(cut), 2):
        cut[i], cut[i + 1] = cut[i] & 3, 0
    parts |= {b"order2_row": bytes(cut), b"order2": parts[b"order2"][:1024], b"lines": parts[b"lines"][: lines * LINE]}
    text = text[:2000]
parts[b"primer"] = text
pack = {b"lines": parts[b"lines"], b"primer": "\n".join(texts[1::4]).encode()[: len(text)], b"model_id": base[16:48]}
(folder / f"{target}.nbm").write_bytes(build(b"NBMM", base[16:48], parts))
(folder / f"{target}.nbp").write_bytes(build(b"NBMP", base[16:48], pack))
(folder / "lines.txt").write_text("\n".join(t.replace("\n", " ")[:300] for t in texts) + "\n", encoding="utf-8")
corpus = folder / "corpus-model"
if target == "model":
    for flags in range(256):
        if not flags & 2:
            (corpus / f"edits-{flags:03d}").write_bytes(bytes([flags]) + b"".join(bytes([k, 31 * k + flags & 255, 1, 2, 3, 4, 5, 6]) for k in range(flags % 4)))
    (corpus / "header").write_bytes(b"\x02" + build(b"NBMM", bytes(32), {b"lines": bytes(64), b"primer": b"primer"}))
PY

export NBMF_FUZZ_MODEL="$folder/$target.nbm" NBMF_FUZZ_PACK="$folder/$target.nbp"
# The line table stays where it is, so that the file's end is guarded.
export NBMF_HUGE_PAGES=0 ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
[ "$target" = model ] || NBMF_FUZZ_SEEDS="$folder/corpus-decode" "$folder/fuzz_decode" <"$folder/lines.txt"

status=0
"$folder/fuzz_$target" -runs="$runs" -max_len="$max_len" -timeout=10 -rss_limit_mb=2048 -reload=0 -reduce_inputs=0 -print_final_stats=1 \
    -artifact_prefix="$folder/findings-$target/" "$folder/corpus-$target" >"$folder/log-$target" 2>&1 || status=$?
done=$(sed -n 's/^stat::number_of_executed_units: *//p' "$folder/log-$target")
echo "fuzz_$target: ${done:-?} executions, findings: $(find "$folder/findings-$target" -type f | wc -l), status $status, log $folder/log-$target"
find "$folder/findings-$target" -type f
exit $status
