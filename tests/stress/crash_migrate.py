"""Kills a migration with `kill -9` at random instants until it has been killed often enough, and checks the outcome.

    python tests/stress/crash_migrate.py --kills 300 --records 3000 --destination tier

Each round migrates an old store (blobs in the open and sealed, previews, torn files) in a process of its own, which is
killed, started again, and so on until it finishes. Then: every record is there, exactly, put once; nothing else is;
every unreadable file's bytes are kept; the source is untouched; the tier's own check is clean. Every other round is
then rolled back, killed in the same way, and must leave exactly what was there before.
"""

import argparse
import base64
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "policy"))

from destinations import TableDestination, TierDestination

from nbmf import samples
from nbmf.codec import stub
from nbmf.codec.codec import Codec
from nbmf.policy.migrate import fingerprint, migrate_to
from nbmf.policy.migration.report import Report
from nbmf.policy.sources import Incoming, Unreadable, open_source

KEY = b"the old store's key"
BATCH = 16
OWN = Incoming(("mine",), "note", "was there before, and stays", origin="")
SEALED_EVERY, PREVIEW_EVERY, TORN_EVERY = 7, 11, 97


def write_old_store(root: Path, count: int, seed: int) -> None:
    """`count` files as the old store wrote them."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    folder = root / "records"
    folder.mkdir(parents=True)
    texts = samples.load()
    box = AESGCM(hashlib.sha256(KEY).digest())
    for at in range(count):
        sample = texts[(at + seed) % len(texts)]
        value = {"n": at, "value": sample.value}
        encoded = stub.encode(value, "semantic" if at % PREVIEW_EVERY == 0 else "lossless")
        record: Any = {"payload": encoded, "meta": {"at": at}, "cls": sample.kind}
        if at % SEALED_EVERY == 0:
            nonce = hashlib.sha256(b"%d %d" % (seed, at)).digest()[:12]
            ciphertext = box.encrypt(nonce, json.dumps(record).encode(), b"")
            both = (base64.urlsafe_b64encode(part).decode() for part in (nonce, ciphertext))
            record = {"__encrypted__": dict(zip(("nonce", "ciphertext"), both, strict=True), alg="AESGCM")}
        text = json.dumps(record)
        (folder / f"key_{at}__{sample.kind}.json").write_text(text[:-9] if at % TORN_EVERY == 0 else text)


def destination_at(kind: str, folder: Path) -> Any:
    if kind == "table":
        return TableDestination(folder / "table.db")
    return TierDestination(folder / "warm.db", Codec())


def work(folder: Path, kind: str, undo: bool) -> None:
    """What is killed."""
    destination = destination_at(kind, folder)
    options = {"key": KEY, "batch": BATCH, "undo": undo}
    report = migrate_to(folder / "old", destination, folder=folder / "migration", **options)
    destination.close()
    sys.exit(0 if report.ok else 3)


def run_until_done(args: argparse.Namespace, folder: Path, chance: random.Random, undo: bool) -> tuple[int, int]:
    """Kills and runs that it took. The time to live grows, so that it ends even on a slow machine."""
    command = [sys.executable, __file__, "--work", "--folder", str(folder), "--destination", args.destination]
    journal = folder / "migration" / "journal"
    kills = 0
    for runs in range(1, 10_000):
        process = subprocess.Popen([*command, *(["--undo"] if undo else [])], stderr=subprocess.PIPE)
        size = journal.stat().st_size if journal.exists() else -1
        # The instant is drawn from when work has begun, not from the start of the interpreter.
        begun = time.monotonic()
        while process.poll() is None and time.monotonic() - begun < 10:
            if undo and time.monotonic() - begun > args.startup:
                break
            if not undo and journal.exists() and journal.stat().st_size > size:
                break
            time.sleep(0.001)
        try:
            process.wait(chance.uniform(0, args.life) * (1 + runs / 20))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        assert process.stderr is not None
        said = process.stderr.read().decode()
        process.stderr.close()
        code = process.wait()
        if code == 0:
            return kills, runs
        if code != -signal.SIGKILL:
            raise SystemExit(f"the migration failed with {code}: {said}")
        # A rollback ends by putting the journal aside; it may be killed right after.
        if undo and not journal.exists():
            return kills, runs
    raise SystemExit("it never finished")


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file): (hashlib.sha256(file.read_bytes()).digest(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def check(folder: Path, kind: str) -> int:
    """How many records were migrated. Raises AssertionError."""
    with open_source(folder / "old", key=KEY) as source:
        items = list(source.items())
    wanted = {(item.namespace, item.key): fingerprint(item) for item in items if isinstance(item, Incoming)}
    torn = [item for item in items if isinstance(item, Unreadable)]
    destination = destination_at(kind, folder)
    found = destination.everything()
    assert found.pop((OWN.namespace, OWN.key)).value == OWN.value, "the destination's own record was lost"
    assert {address: fingerprint(item) for address, item in found.items()} == wanted, "not what the source holds"
    if kind == "table":
        assert set(destination.puts().values()) == {1}, "a record was put twice"
    else:
        assert list(destination.tier.check()) == [], "the tier's check"
    destination.close()
    report = Report.from_dict(json.loads((folder / "migration" / "report.json").read_text()))
    assert (report.put, report.verified, len(report.unreadable)) == (len(wanted), len(wanted), len(torn))
    for entry, item in zip(report.unreadable, torn, strict=True):
        assert (folder / "migration" / entry["file"]).read_bytes() == item.raw, "unreadable bytes were lost"
    return len(wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="at least so many")
    parser.add_argument("--records", type=int, default=2000, help="of each round's source")
    parser.add_argument("--destination", choices=["tier", "table"], default="tier")
    parser.add_argument("--folder", type=Path, required=True, help="a folder to work in; emptied")
    parser.add_argument("--life", type=float, default=0.4, help="seconds of work at most before the first kill")
    parser.add_argument("--startup", type=float, default=0.25, help="seconds before a rollback has begun its work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--undo", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.folder, args.destination, args.undo)
    chance = random.Random(args.seed)
    totals = {"kills": 0, "kills_of_rollbacks": 0, "rounds": 0, "runs": 0, "records": 0}
    while totals["kills"] < args.kills:
        folder = args.folder / "round"
        shutil.rmtree(folder, ignore_errors=True)
        write_old_store(folder / "old", args.records, totals["rounds"])
        before = state(folder / "old")
        destination = destination_at(args.destination, folder)
        destination.put_many([OWN])
        destination.close()
        kills, runs = run_until_done(args, folder, chance, undo=False)
        totals["records"] += check(folder, args.destination)
        assert state(folder / "old") == before, "the source was changed"
        if totals["rounds"] % 2:
            undone, more = run_until_done(args, folder, chance, undo=True)
            destination = destination_at(args.destination, folder)
            assert [item.value for item in destination.everything().values()] == [OWN.value], "rollback left records"
            destination.close()
            totals["kills_of_rollbacks"] += undone
            kills, runs = kills + undone, runs + more
        totals["kills"] += kills
        totals["runs"] += runs
        totals["rounds"] += 1
        if not args.json:
            print(totals, flush=True)
    shutil.rmtree(args.folder, ignore_errors=True)
    if args.json:
        print(json.dumps(totals))


if __name__ == "__main__":
    if not hasattr(signal, "SIGKILL") or os.name == "nt":
        raise SystemExit("this needs kill -9")
    main()
