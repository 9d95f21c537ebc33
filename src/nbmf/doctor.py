"""`nbmf doctor`: whether an installation and a store are fit to work, and what to do about what is not.

Nothing is changed. Every finding names its check, what was seen, and the fix. `nbmf check` verifies every record;
`deep` does that here too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sqlite3
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from nbmf.codec import kernel
from nbmf.codec.codec import Codec
from nbmf.codec.model import MODEL_SUFFIX, PACK_SUFFIX, PACKAGED, directories, load_model, load_pack, model_by_id
from nbmf.codec.values import to_raw
from nbmf.errors import NbmfError, PolicyError
from nbmf.memory import Memory
from nbmf.memory.aging import disk_bytes
from nbmf.memory.encoding import value_of
from nbmf.memory.items import now
from nbmf.memory.opening import KEYS, POLICY_FILE, TENANTS, WARM_FILE, holds_store, is_encrypted, is_postgres
from nbmf.policy.policy import Policy
from nbmf.policy.router import NEURAL
from nbmf.report import Tick
from nbmf.store_access import Access, public_address

OK: Final = "ok"
NOTE: Final = "note"  # worth knowing, nothing to do
WARN: Final = "warn"  # it works, and should be seen to
FAIL: Final = "fail"

GOLDEN: Final = "golden.json"  # beside the models: a blob, its value, and the model that it needs
SPACE_LEAST: Final = (
    256 << 20
)  # bytes that should be free, and as many again as the store has: `compact` writes it anew
LOG_MOST: Final = 64 << 20  # bytes of a write-ahead log, over which something keeps it from being emptied
SAMPLE: Final = 200  # records that are encoded anew
NETWORK: Final = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs")
FLEETING: Final = ("tmpfs", "ramfs")
EXTRAS: Final = {
    "nbmf[search]": ("wordllama", "tokenizers"),
    "nbmf[encrypt]": ("apsw", "cryptography"),
    "nbmf[postgres]": ("psycopg",),
    "nbmf[s3]": ("obstore",),
}
DIVERGENCES: Final = re.compile(r'^nbmf_divergences_total\{[^}]*encoder="([^"]*)"[^}]*\}\s+([0-9.eE+]+)', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw. `fix` is empty for OK and NOTE."""

    check: str
    state: str
    what: str
    fix: str = ""


Check = Iterator[Finding]


def examine(
    address: str | None, access: Access, *, deep: bool = False, metrics: str | None = None, tick: Tick
) -> list[Finding]:
    """Every finding of the installation and, where there is an address, of the store there.

    `metrics`: the text of a server's metrics, which hold its count of divergences. Raises nothing of what it examines.
    """
    found = [*_kernel(), *_models(), *_golden(), *_extras()]
    if metrics is not None:
        found += _counted(metrics)
    if address is None:
        return found
    if not is_postgres(address):
        folder = Path(address)
        if not holds_store(folder):
            lost = (folder / TENANTS).exists()
            what = (
                f"{folder / KEYS} is missing: without it nobody can read this store"
                if lost
                else f"{folder} holds no store"
            )
            fix = f"put {KEYS} back from a backup" if lost else "name the folder that `nbmf put` made"
            return [*found, Finding("store", FAIL, what, fix)]
        found += [*_policy_file(folder, access), *_permissions(folder), *_space(folder), *_logs(folder)]
    return found + _guarded("store", lambda: _opened(address, access, deep, tick))


def _guarded(name: str, check: Callable[[], Check]) -> list[Finding]:
    """What a check finds; an error that it runs into is a finding too."""
    found: list[Finding] = []
    try:
        for one in check():
            found.append(one)
    except NbmfError as error:
        found.append(Finding(name, FAIL, str(error), _fix_of(str(error))))
    except OSError as error:
        found.append(
            Finding(name, FAIL, f"{error.filename or name}: {error.strerror or error}", "see that it is there")
        )
    return found


def _fix_of(error: str) -> str:
    """What helps against an error that a store cannot be opened, or read, for."""
    for words, fix in (
        ("is encrypted", "give its key: --key-file, --passphrase-env or NBMF_KEY"),
        ("without encryption", "unset NBMF_KEY, or leave out --key-file"),
        ("isn't installed", "install the extra that is named"),
        ("needs nbmf[", "install the extra that is named"),
        ("no model or pack", "put the model or pack into a folder that NBMF_MODELS names"),
        ("malformed", "restore the file from a backup; `nbmf check` lists what is lost"),
        ("is not a database", "restore the file from a backup"),
        ("policy", f"correct {POLICY_FILE}, or move it away for the defaults"),
    ):
        if words in error:
            return fix
    return "run `nbmf check` on the store; restore from a backup what it names"


# -- the installation --------------------------------------------------------------------------------------------------


def _kernel() -> Check:
    try:
        backend = kernel.backend
    except NbmfError as error:
        yield Finding("kernel", FAIL, str(error), "unset NBMF_KERNEL")
        return
    if backend != "c":
        forced = os.environ.get("NBMF_KERNEL") == "numpy"
        yield Finding(
            "kernel",
            WARN,
            "the NumPy reference does the work, about a thousand times slower, with the same bytes",
            "unset NBMF_KERNEL" if forced else "install a C compiler, then `pip install --force-reinstall nbmf`",
        )
        return
    level = str(importlib.import_module("nbmf.codec._kernel").simd())
    if level == "plain":
        yield Finding("kernel", NOTE, "C without SIMD: this processor has no AVX2, or NBMF_SIMD says so")
    else:
        yield Finding("kernel", OK, f"C, {level}")


def _models() -> Check:
    """Every model and pack that can be found, hashed anew."""
    seen = 0
    for directory in directories():
        if not directory.is_dir():
            continue
        for path in sorted([*directory.glob(f"*{MODEL_SUFFIX}"), *directory.glob(f"*{PACK_SUFFIX}")]):
            try:
                if path.suffix == MODEL_SUFFIX:
                    Codec(model=str(path))
                else:
                    Codec(model=str(model_by_id(load_pack(path).model_id).path), domain=str(path))
                seen += 1
            except (NbmfError, OSError) as error:
                yield Finding("models", FAIL, f"{path}: {error}", f"copy {path.name} there anew, or delete it")
    try:
        base = load_model()
    except (NbmfError, OSError) as error:
        yield Finding("models", FAIL, f"no base model: {error}", "install nbmf again: the package brings it")
        return
    yield Finding("models", OK, f"{seen} verified; base is {base.id.hex()[:8]}")


def golden() -> Iterator[tuple[str, str, bytes, Any]]:
    """Model id (8 hex digits), profile, blob and value of each blob whose bytes never change."""
    for line in json.loads((PACKAGED / GOLDEN).read_text(encoding="utf-8")):
        yield line["model"], line["profile"], bytes.fromhex(line["blob"]), line["value"]


def _golden() -> Check:
    """Blobs that ship with the package decode to the values that they were made of, and are made of them again."""
    base = load_model()
    right = 0
    for model, profile, blob, value in golden():
        if model != base.id.hex()[:8]:
            continue
        try:
            codec = Codec(profile=profile)
            same = to_raw(codec.decode(blob)) == to_raw(value) and codec.encode(value) == blob
        except NbmfError:
            same = False
        if not same:
            yield Finding(
                "golden blobs",
                FAIL,
                f"the blob of {value!r}"[:60] + " is not what it always was: nothing should be written here",
                "install nbmf again; if that does not help, report the processor and `nbmf --version`",
            )
            return
        right += 1
    if not right:
        yield Finding(
            "golden blobs", FAIL, f"there is none for the base model {base.id.hex()[:8]}", "install nbmf again"
        )
        return
    yield Finding("golden blobs", OK, f"{right} decode, and are made again to the byte")


def _extras() -> Check:
    there = [
        name
        for name, needs in EXTRAS.items()
        if all(importlib.util.find_spec(package) is not None for package in needs)
    ]
    yield Finding("extras", NOTE, ", ".join(there) or "none")


def _counted(text: str) -> Check:
    """Divergences that a running server has counted."""
    counts = {encoder: float(count) for encoder, count in DIVERGENCES.findall(text)}
    bad = {encoder: count for encoder, count in counts.items() if count}
    if not counts:
        yield Finding("divergence", NOTE, "the metrics count none: the server has not compared any yet")
    elif bad:
        told = ", ".join(f"{count:,.0f} of the {encoder} encoder" for encoder, count in bad.items())
        yield Finding("divergence", FAIL, f"the server counted {told}", _BACK)
    else:
        yield Finding("divergence", OK, "the server counted none")


_BACK: Final = "set rollout.percent = 0 and no rollout.tenants, keep rollout.shadow on, run `nbmf check`, and report it"


# -- the store's folder ------------------------------------------------------------------------------------------------


def _policy_file(folder: Path, access: Access) -> Check:
    path = access.policy or folder / POLICY_FILE
    if access.policy is None and not path.exists():
        yield Finding("policy", OK, "none: the defaults hold")
        return
    try:
        policy = Policy.load(path)
    except (PolicyError, OSError) as error:
        yield Finding("policy", FAIL, str(error), f"correct {path}, or move it away for the defaults")
        return
    yield Finding("policy", OK, f"{path.name}: {len(policy.sections)} sections")


def _permissions(folder: Path) -> Check:
    """Files that this user cannot use, and that others could change or should not read."""
    fine = True
    secret = is_encrypted(folder)
    for path in [folder, *sorted(folder.rglob("*"))]:
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # gone meanwhile
        wanted = stat.S_IRUSR | stat.S_IWUSR | (stat.S_IXUSR if stat.S_ISDIR(mode) else 0)
        usable = os.access(path, os.R_OK | os.W_OK | (os.X_OK if stat.S_ISDIR(mode) else 0))
        if mode & wanted != wanted or not usable:
            fine = False
            yield Finding("permissions", FAIL, f"{path} cannot be read and written", f"chmod -R u+rwX {folder}")
            break
        if sys.platform != "win32" and mode & stat.S_IWOTH:
            fine = False
            yield Finding("permissions", WARN, f"{path} can be changed by anybody", f"chmod -R o-w {folder}")
            break
        if sys.platform != "win32" and secret and path.name == KEYS and mode & (stat.S_IRGRP | stat.S_IROTH):
            fine = False
            yield Finding("permissions", WARN, f"{path} can be read by others", f"chmod 600 {path}")
    if fine:
        yield Finding("permissions", OK, "readable and writable here, and not by everybody")


def _space(folder: Path) -> Check:
    free, taken = shutil.disk_usage(folder).free, disk_bytes(folder)
    need = SPACE_LEAST + taken
    if free < need:
        yield Finding(
            "disk space",
            WARN,
            f"{_mb(free)} free, where compacting {_mb(taken)} may need {_mb(need)}",
            "free space, move the store, or age records into an S3-compatible cold tier",
        )
    else:
        yield Finding("disk space", OK, f"{_mb(free)} free, the store has {_mb(taken)}")
    kind = filesystem(folder)
    if kind in NETWORK:
        yield Finding(
            "file system",
            WARN,
            f"{kind}: SQLite's locks and its log do not work reliably over a network",
            "keep the store on a local disk, or use a PostgreSQL store",
        )
    elif kind in FLEETING:
        yield Finding("file system", WARN, f"{kind} is memory: all is lost at a restart", "keep the store on a disk")


def filesystem(folder: Path) -> str | None:
    """The type of the filesystem that a folder lies on, where the system tells."""
    best, kind = "", None
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        where, of = line.split()[1:3]
        if folder.resolve().is_relative_to(where) and len(where) >= len(best):
            best, kind = where, of
    return kind


_HELD: Final = "end the process that holds a snapshot (`fuser` names those with the file open), then `nbmf compact`"


def _logs(folder: Path) -> Check:
    """Write-ahead logs that nobody empties, and a database that another program has switched to another journal."""
    fine = True
    for log in sorted([*folder.glob("*.db-wal"), *folder.glob(f"{TENANTS}/*.db-wal")]):
        with suppress(OSError):
            if (size := log.stat().st_size) > LOG_MOST:
                fine = False
                yield Finding(
                    "log", WARN, f"{log} has {_mb(size)}: a reader that never ends keeps it from being emptied", _HELD
                )
    path = folder / WARM_FILE
    if path.exists() and not is_encrypted(folder):
        uri = f"{path.absolute().as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, timeout=5, uri=True)) as raw:
                mode = raw.execute("PRAGMA journal_mode").fetchone()[0]
                state = raw.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.Error as error:
            yield Finding(
                "log", FAIL, f"{path}: {error}", "restore the file from a backup; `nbmf check` lists the loss"
            )
            return
        if mode != "wal":
            fine = False
            yield Finding(
                "log", WARN, f"{path} is in {mode} mode: another program changed it", "open the store once with nbmf"
            )
        if state != "ok":
            fine = False
            told = " ".join(str(state).split())[:100]
            yield Finding(
                "log", FAIL, f"{path} is damaged: {told}", "restore it from a backup; `nbmf check` lists the loss"
            )
    if fine:
        yield Finding("log", OK, "emptied as it should be; the database is whole")


# -- the open store ----------------------------------------------------------------------------------------------------


def _opened(address: str, access: Access, deep: bool, tick: Tick) -> Check:
    with access.open(address) as memory:
        stats = memory.stats()
        yield Finding("store", OK, f"{public_address(address)} opens: {stats['records']:,} records")
        yield from _rollout(memory.policy)
        yield from _codecs(memory, stats["records"], tick)
        if deep:
            faults = list(memory.check(tick))
            for fault in faults[:20]:
                yield Finding(
                    "records", FAIL, f"{fault.where}: {fault.what}", "restore it from a backup, or put it anew"
                )
            if not faults:
                yield Finding("records", OK, "every checksum holds and every record decodes")


def _rollout(policy: Policy) -> Check:
    rollout = policy.rollout
    fine = True
    if policy.rules("", "").encoder != NEURAL:
        fine = False
        yield Finding(
            "rollout",
            WARN,
            f"the policy's encoder is {policy.rules('', '').encoder}: new records get no neural blobs",
            f'set default.encoder = "neural" in {POLICY_FILE}',
        )
    if rollout.percent < 100:
        fine = False
        yield Finding(
            "rollout",
            WARN,
            f"unfinished: {rollout.percent:g} % of keys and {len(rollout.tenants)} tenants get the neural encoder",
            "raise rollout.percent (10, 50, 100) while divergences stay at 0",
        )
    if rollout.shadow:
        fine = False
        yield Finding(
            "rollout",
            WARN if rollout.percent >= 100 else NOTE,
            "in shadow: every write is encoded twice, and compared",
            "set rollout.shadow = false once divergences have stayed at 0" if rollout.percent >= 100 else "",
        )
    if fine:
        yield Finding("rollout", OK, "complete: all keys get the neural encoder")


def _codecs(memory: Memory, count: int, tick: Tick) -> Check:
    """The models and packs that records name, and a sample of records encoded anew."""
    uses: Counter[str] = Counter()
    step = max(1, count // SAMPLE)
    sample: list[tuple[str, bytes]] = []
    for place, (found, _) in enumerate(memory.live((), now())):
        uses[found.codec] += 1
        if place % step == 0 and len(sample) < SAMPLE:
            sample.append((found.codec, found.blob))
        if place % 1000 == 0:
            tick("examining records", place, count)
    missing = set()
    for id, records in uses.items():
        try:
            memory.codecs.of_id(id)
        except NbmfError as error:
            missing.add(id)
            yield Finding(
                "codecs",
                FAIL,
                f"{records:,} records need {id[:8]}: {error}",
                "put that model or pack into a folder that NBMF_MODELS names, or packs/ back from a backup",
            )
    if not missing:
        yield Finding("codecs", OK, f"all {len(uses)} models and packs that records need are here")
    yield from _divergence(memory, [one for one in sample if one[0] not in missing])


def _divergence(memory: Memory, sample: Sequence[tuple[str, bytes]]) -> Check:
    diverged = 0
    for id, blob in sample:
        try:
            pair = memory.codecs.decode(id, blob)
            codec = memory.codecs.of_id(id)
            diverged += codec.raw(codec.from_pair(*pair, bare=True), bare=True) != pair
        except NbmfError:
            diverged += 1
        else:
            value_of(pair)
    if diverged:
        told = f"{diverged} of {len(sample)} records do not come back from the encoder as they are"
        yield Finding("divergence", FAIL, told, _BACK)
    else:
        yield Finding("divergence", OK, f"0 of {len(sample)} records, decoded and encoded anew")


# -- telling -----------------------------------------------------------------------------------------------------------


def _mb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def as_json(found: Sequence[Finding]) -> dict[str, Any]:
    return {"sound": is_sound(found), "findings": [asdict(one) for one in found]}


def is_sound(found: Sequence[Finding]) -> bool:
    """Whether nothing failed."""
    return all(one.state != FAIL for one in found)


def lines(found: Sequence[Finding]) -> Iterator[str]:
    """The findings as text, each fix under its finding."""
    marks = {OK: "✓", NOTE: "·", WARN: "!", FAIL: "✗"}
    wide = max(len(one.check) for one in found)
    for one in found:
        yield f"{marks[one.state]} {one.check.ljust(wide)}  {one.what}"
        if one.fix:
            yield f"  {' ' * wide}  → {one.fix}"


__all__ = ["Finding", "as_json", "examine", "golden", "is_sound", "lines"]
