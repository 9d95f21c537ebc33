"""The command line: what goes in comes out, figures are JSON when asked for, errors are one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nbmf import inspect, quickstart, report, samples, transcode
from nbmf.cli import app
from nbmf.codec import format, kernel
from nbmf.codec.values import BYTES, to_raw
from nbmf.errors import DataError

COMMANDS = ("quickstart", "encode", "decode", "inspect", "adapt", "train", "eval", "bench")
TEXT = "Prefers green tea, no sugar."

runner = CliRunner()
needs_c = pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference")


def nbmf(*arguments: str, stdin: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
    """The command as a process of its own, as users run it."""
    command = [sys.executable, "-m", "nbmf.cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)


def one_line_error(result: "subprocess.CompletedProcess[bytes]", *words: str) -> None:
    """Exit code 1, nothing on standard output, one line on standard error that holds `words`."""
    error = result.stderr.decode()
    assert result.returncode == 1, error
    assert result.stdout == b""
    assert error.startswith("nbmf: ") and error.endswith("\n") and error.count("\n") == 1, error
    for word in words:
        assert word in error


def stored_blob(raw: bytes) -> bytes:
    return format.build(format.STORED, BYTES, format.crc(BYTES, raw), raw, bare=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("nbmf ") and kernel.backend in result.output


def test_no_command_shows_help() -> None:
    assert "quickstart" in runner.invoke(app, []).output


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        b'{"text":"likes tea","n":1.0,"tags":[]}',
        b'{"text": "spaced",  "n": 1}\n',
        b'{"n":1,"n":2}',
        "多谢".encode(),
        b"\xff\xfe\x00binary",
        b"",
        b"[",
    ],
    ids=["text", "json", "spaced", "repeated key", "chinese", "bytes", "empty", "not json"],
)
def test_pipe_gives_the_bytes_back(data: bytes) -> None:
    blob = nbmf("encode", "-", stdin=data)
    assert blob.returncode == 0, blob.stderr
    back = nbmf("decode", "-", stdin=blob.stdout)
    assert (back.returncode, back.stdout) == (0, data)


def test_auto_knows_compact_json() -> None:
    assert transcode.parse(b'{"a":1}', "auto") == {"a": 1}
    assert transcode.parse(b'{"a": 1}', "auto") == '{"a": 1}'
    assert transcode.parse(b'{"a": 1}\n', "json") == {"a": 1}
    assert transcode.parse(b"[1,NaN]", "auto") == "[1,NaN]"
    assert transcode.parse(b"17", "auto") == "17"
    with pytest.raises(DataError, match="not one JSON value"):
        transcode.parse(b"{", "json")


def test_bare_files(tmp_path: Path) -> None:
    source, blob, back = tmp_path / "in.txt", tmp_path / "in.nb", tmp_path / "back.txt"
    source.write_text(TEXT, encoding="utf-8")
    made = runner.invoke(app, ["encode", str(source), "--bare", "--out", str(blob), "--json"])
    assert made.exit_code == 0, made.output
    figures = json.loads(made.output)
    assert figures["raw_bytes"] == len(TEXT) and figures["stored_bytes"] == blob.stat().st_size
    result = runner.invoke(app, ["decode", str(blob), "--bare", "--out", str(back)])
    assert result.exit_code == 0, result.output
    assert back.read_text(encoding="utf-8") == TEXT


def test_encode_says_what_it_took(tmp_path: Path) -> None:
    result = runner.invoke(app, ["encode", "-", "--out", str(tmp_path / "a.nb")], input=TEXT)
    assert result.exit_code == 0, result.output
    assert "ratio" in result.output and str(len(TEXT)) in result.output


def test_inspect(tmp_path: Path) -> None:
    blob = tmp_path / "a.nb"
    assert runner.invoke(app, ["encode", "-", "--out", str(blob)], input=TEXT).exit_code == 0
    result = runner.invoke(app, ["inspect", str(blob)])
    assert result.exit_code == 0, result.output
    assert TEXT in result.output and "self-describing" in result.output
    figures = json.loads(runner.invoke(app, ["inspect", str(blob), "--json"]).output)
    assert figures["size"] == blob.stat().st_size
    assert figures["framing_bytes"] + figures["payload_bytes"] == figures["size"]
    assert len(figures["bits"]) == figures["raw_bytes"] == len(TEXT)
    if figures["method"] == "neural":
        spent = sum(figures["bits"]) + figures["end_bits"]
        assert abs(spent - 8 * figures["payload_bytes"]) < 40  # the coder's last bytes, and costs to 1/256 bit
        assert figures["id"] == (figures["pack"] or figures["model"])


def inspection(raw: bytes, is_text: bool) -> inspect.Inspection:
    bits = [place % 9 + 0.5 for place in range(len(raw))]
    return inspect.Inspection(
        size=len(raw) + 9,
        method="neural",
        value_type="text" if is_text else "bytes",
        profile="fast",
        self_describing=True,
        segmented=False,
        check="00000000",
        id="00000000",
        model="00000000",
        pack=None,
        framing_bytes=9,
        payload_bytes=len(raw),
        raw_bytes=len(raw),
        ratio=1.0,
        bits_per_byte=8.0,
        end_bits=1.0,
        bits=bits,
        raw=raw,
        is_text=is_text,
    )


@pytest.mark.parametrize("text", ["abc\ndef\tg", "好的 \U0001f44d \ufffd!", "\ud800 lone", "x" * 300])
def test_heat_covers_every_byte(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    found = inspection(raw, is_text=True)
    shown = list(inspect.pieces(found))
    lone = sum("\ud800" <= character <= "\udfff" for character in text)
    assert len(shown) == len(text) + 2 * lone  # a lone surrogate shows as its three bytes
    assert inspect.heat(found).plain.replace("\n", "") == "".join(piece for piece, _, _ in shown)
    lines = inspect.marked(found, 80)
    assert len(lines) % 2 == 0
    assert "".join(lines[::2]) == "".join(piece for piece, _, _ in shown)


def test_heat_of_bytes_is_hex() -> None:
    assert "ff 00" in inspect.heat(inspection(b"\xff\x00", is_text=False)).plain


def test_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel.backend != "c":
        few = [sample for sample in samples.load() if sample.kind == "short"][:3]
        monkeypatch.setattr(samples, "load", lambda: few)
    arguments = ["quickstart", "--limit", "2"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "zstd+dict" in result.output and "came back exactly" in result.output
    figures = json.loads(runner.invoke(app, [*arguments, "--json"]).output)
    total = figures["total"]
    assert total["exact"] == total["records"] == sum(row["records"] for row in figures["rows"])
    assert total["raw_bytes"] == sum(row["raw_bytes"] for row in figures["rows"])
    vectors = figures["vectors"]
    assert vectors["vectors"] > 0 and vectors["lossless_exact"] == vectors["vectors"] and vectors["ratio"] > 8
    assert vectors["bound"] <= vectors["cosine_min"] <= vectors["cosine_mean"] < 1
    for row in [*figures["rows"], total]:
        assert min(row[name] for name in ("zlib", "zstd", "zstd_dictionary", "nbmf", "nbmf_self_describing")) > 0
        assert row["encode_ms_p50"] <= row["encode_ms_p95"] and row["decode_ms_p50"] <= row["decode_ms_p95"]


@needs_c
def test_quickstart_beats_the_others() -> None:
    result = runner.invoke(app, ["quickstart", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output)
    total = figures["total"]
    assert total["exact"] == total["records"] == len(samples.load())
    assert total["nbmf"] > max(total["zlib"], total["zstd"], total["zstd_dictionary"])
    vectors = figures["vectors"]
    assert vectors["learned_ratio"] > vectors["ratio"] and vectors["learned_cosine_min"] >= vectors["bound"]


def test_dictionary_never_sees_the_record_it_is_tested_on() -> None:
    """Two halves of one record each: a dictionary from the other half knows nothing of this one."""
    one, other = os.urandom(400), os.urandom(400)
    assert min(quickstart.dictionary_sizes([one, other])) >= 400
    assert max(quickstart.dictionary_sizes([one, one])) < 100


def test_dictionary_sizes_of_few_records() -> None:
    assert quickstart.dictionary_sizes([]) == []
    assert quickstart.dictionary_sizes([b"alone"]) == [quickstart.zstd_size(b"alone")]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.95, 4), (0.01, 1), (0.75, 3)])
def test_percentile(share: float, expected: int) -> None:
    assert quickstart.percentile([3, 1, 4, 2], share) == expected


def test_missing_file() -> None:
    one_line_error(nbmf("decode", "/no/such/file"), "/no/such/file", "No such file")


@pytest.mark.parametrize("blob", [b"", b"\x83", b"not a blob at all", b"\x20\x00\x00\x00\x00x"])
@pytest.mark.parametrize("command", ["decode", "inspect"])
def test_not_a_blob(command: str, blob: bytes) -> None:
    one_line_error(nbmf(command, "-", stdin=blob))


def test_a_bare_blob_without_the_flag() -> None:
    blob = nbmf("encode", "-", "--bare", stdin=b"x").stdout
    one_line_error(nbmf("decode", "-", stdin=blob), "bare")


def test_bad_utf8_as_text() -> None:
    one_line_error(nbmf("encode", "-", "--type", "text", stdin=b"ab\xff"), "byte 2", "--type bytes")


def test_bad_json() -> None:
    one_line_error(nbmf("encode", "-", "--type", "json", stdin=b"{"), "JSON")


def test_unknown_model() -> None:
    one_line_error(nbmf("encode", "-", "--model", "nosuch", stdin=b"x"), "nosuch")


def test_json_needs_out() -> None:
    one_line_error(nbmf("encode", "-", "--json", stdin=b"x"), "--out")


def test_wrong_option_is_a_usage_error() -> None:
    assert runner.invoke(app, ["encode", "--no-such"]).exit_code == 2


def test_reader_that_goes_away(tmp_path: Path) -> None:
    blob = tmp_path / "big.nb"
    blob.write_bytes(stored_blob(bytes(8_000_000)))
    command = f"{sys.executable} -m nbmf.cli decode {blob} | head -c 1"
    result = subprocess.run(command, shell=True, capture_output=True, timeout=120, check=False)
    assert (result.stdout, result.stderr) == (b"\0", b"")


@needs_c
def test_adapt_then_use_the_pack(tmp_path: Path) -> None:
    records, pack = tmp_path / "records.jsonl", tmp_path / "mine.nbp"
    values = [sample.value for sample in samples.generate(400, seed=21)]
    records.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    result = runner.invoke(app, ["adapt", str(records), "--out", str(pack), "--size", "64", "--json"])
    assert result.exit_code == 0, result.output
    json.loads(result.output)
    assert 0 < pack.stat().st_size <= 64 * 1024
    data = to_raw(samples.generate(410, seed=21)[402].value)[1]
    plain = nbmf("encode", "-", stdin=data).stdout
    packed = nbmf("encode", "-", "--domain", str(pack), stdin=data).stdout
    assert len(packed) < len(plain)
    assert nbmf("decode", "-", "--domain", str(pack), stdin=packed).stdout == data
    one_line_error(nbmf("decode", "-", stdin=packed))


def test_adapt_without_records(tmp_path: Path) -> None:
    one_line_error(nbmf("adapt", "-", "--out", str(tmp_path / "a.nbp"), stdin=b""))
    assert not (tmp_path / "a.nbp").exists()


@needs_c
def test_bench_prints_json(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    result = runner.invoke(app, ["bench", "--no-peers", "--limit", "1", "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output) == json.loads(out.read_text(encoding="utf-8"))


@needs_c
def test_eval_prints_json(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    values = [sample.value for sample in samples.generate(20, seed=8)]
    records.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    result = runner.invoke(app, ["eval", str(records), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)


def test_report_shows_any_result() -> None:
    from io import StringIO

    out = StringIO()
    result = {
        "ratio": 5.25,
        "exact": True,
        "none": None,
        "sizes": [1, 2],
        "rows": [{"kind": "chat", "records": 12_345}, {"kind": "log", "records": 7}],
        "by_source": {"a": {"ratio": 2.0}, "b": {"ratio": 3.0}},
        "machine": {"cores": 2},
    }
    report.show(result, report.console(out))
    for word in ("5.25", "yes", "12,345", "chat", "by source", "cores"):
        assert word in out.getvalue()
    assert json.loads(report.dump(result)) == result
