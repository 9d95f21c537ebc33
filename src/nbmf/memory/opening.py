"""Opening a store: what lies in its folder, or behind its address, and which tiers that makes.

agent.nbmf/
  warm.db            every record of a store without encryption (SQLite)
  tenants/, keys     one database a tenant and the wrapped keys, of a store with encryption
  archives/          the cold tier, unless it was opened elsewhere
  packs/             the domain packs that records use
  ledger             the audit ledger, where one was asked for; without encryption its keys are in ledger.keys
  gate, gate.door    empty, for locks
  policy.toml        the policy, if the owner put one there
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from nbmf.errors import PolicyError, StoreError
from nbmf.memory.encoding import Codecs
from nbmf.memory.gate import FolderGate, Gate, ServerGate
from nbmf.memory.packs import Packs
from nbmf.policy.policy import Policy
from nbmf.store.archives import ArchiveTier
from nbmf.store.base import Tier
from nbmf.store.keys import DataKey, Keyring, master_key
from nbmf.store.ledger import Audited, Ledger
from nbmf.store.objects import open_objects
from nbmf.store.sqlite import SQLiteTier
from nbmf.store.tenants import Tenants

POSTGRES: Final = ("postgresql://", "postgres://")
WARM_FILE: Final = "warm.db"
TENANTS: Final = "tenants"
KEYS: Final = "keys"
ARCHIVES: Final = "archives"
PACKS: Final = "packs"
LEDGER: Final = "ledger"
POLICY_FILE: Final = "policy.toml"


@dataclass
class Parts:
    """What a Memory is made of. `folder` is None for a PostgreSQL store that was given none."""

    address: str
    folder: Path | None
    policy: Policy
    codecs: Codecs
    warm: Tier
    gate: Gate
    keys: Keyring | None
    ledger: Ledger | None
    ledger_keys: Keyring | None  # those of the ledger alone, in a store without encryption
    cold_address: str | None

    def open_cold(self) -> ArchiveTier:
        """The cold tier, made if it is not there."""
        if self.cold_address is None:
            raise PolicyError("this store has no cold tier: open it with cold=, a folder or an s3:// address")
        codecs, keys = self.codecs, self.keys

        def seal_of(group: str) -> DataKey | None:
            if keys is None:
                return None
            key = keys.store_key if group == "" else keys.data_key(group)
            if key is None:  # None would be: not sealed
                raise StoreError("the key file has no key for a tenant of the cold tier: it was forgotten")
            return key

        return ArchiveTier(
            open_objects(self.cold_address),
            codecs.groups(""),
            coder_by_id=codecs.groups,
            seal_of=seal_of,
            block_size=self.policy.archive.block_bytes,
            primer_size=self.policy.archive.primer_bytes,
            size=lambda codec, blob: len(codecs.decode(codec, blob)[1]),
        )

    def has_cold(self) -> bool:
        """Whether there may be cold records: archives on the disk, or an object store."""
        if self.cold_address is None:
            return False
        return self.cold_address.startswith("s3://") or Path(self.cold_address).is_dir()

    @property
    def cold_is_elsewhere(self) -> bool:
        """Whether the archives, if any, lie outside the store's folder."""
        if self.cold_address is None or self.folder is None:
            return self.cold_address is not None
        if self.cold_address.startswith("s3://"):
            return True
        return not Path(self.cold_address).resolve().is_relative_to(self.folder.resolve())


def is_postgres(address: str) -> bool:
    """Whether an address is that of a PostgreSQL store."""
    return address.startswith(POSTGRES)


def is_encrypted(folder: Path) -> bool:
    """Whether a folder holds an encrypted store."""
    return (folder / KEYS).exists()


def holds_store(folder: Path) -> bool:
    """Whether a folder holds a store."""
    return is_encrypted(folder) or (folder / WARM_FILE).exists()


def public_address(address: str) -> str:
    """The address without user, password and parameters, for reports and messages."""
    if not is_postgres(address):
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def open_parts(
    address: str,
    *,
    policy: Policy | str | Path | None,
    key: bytes | str | None,
    passphrase: str | None,
    cold: str | None,
    ledger: bool,
    create: bool,
) -> Parts:
    """Raises StoreError (not there, foreign, locked away, another key), PolicyError."""
    if is_postgres(address):
        return _open_postgres(address, policy, key, passphrase, cold, ledger)
    if "://" in address:
        raise StoreError(f"{address.split('://')[0]}:// is no address of a store: a folder or postgresql:// is")
    if not address:
        raise StoreError("an empty path is no address of a store")
    folder = Path(address)
    encrypted = is_encrypted(folder)
    if not create and not holds_store(folder):
        raise StoreError(f"{folder} holds no store")
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file: a store is a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: the folder cannot be made: {error.strerror or error}") from error
    named = key is not None or passphrase is None  # else NBMF_KEY is not looked at
    master = master_key(key) if named and key not in (b"", "") else None
    wanted = master is not None or passphrase is not None
    if wanted and not encrypted and (folder / WARM_FILE).exists():
        raise StoreError(f"{folder} is a store without encryption: open it without a key, or migrate it to one with")
    if encrypted and not wanted:
        raise StoreError(f"{folder} is encrypted: open it with its key or passphrase")
    if not encrypted and (folder / TENANTS).exists():
        raise StoreError(f"{folder / KEYS} is missing: without it nobody can read this store")
    chosen = _policy(policy, folder)
    keys: Keyring | None = None
    own: Keyring | None = None
    warm: Tier
    if wanted:
        keys = Keyring(folder / KEYS, master, passphrase)
        warm = Tenants(folder / TENANTS, keys, SQLiteTier)
    else:
        warm = SQLiteTier(folder / WARM_FILE)
    codecs = Codecs(chosen, Packs(folder / PACKS, keys))
    book: Ledger | None = None
    try:
        if ledger or (folder / LEDGER).exists():
            own = None if keys is not None else Keyring(folder / f"{LEDGER}.keys")
            book = Ledger(folder / LEDGER, keys or own)  # type: ignore[arg-type]
            warm = Audited(warm, book)
    except BaseException:
        warm.close()
        raise
    archives = cold or str(folder / ARCHIVES)
    return Parts(address, folder, chosen, codecs, warm, FolderGate(folder), keys, book, own, archives)


def _open_postgres(
    address: str,
    policy: Policy | str | Path | None,
    key: bytes | str | None,
    passphrase: str | None,
    cold: str | None,
    ledger: bool,
) -> Parts:
    if key not in (None, b"", "") or passphrase is not None:
        raise PolicyError("a PostgreSQL store is encrypted by its server, not with a key of ours")
    if ledger:
        raise PolicyError("a PostgreSQL store has no ledger: that is a file in a store's folder")
    from nbmf.store.postgres import PostgresTier

    chosen = _policy(policy, None)
    warm = PostgresTier(address)
    return Parts(address, None, chosen, Codecs(chosen, None), warm, ServerGate(warm.turn), None, None, None, cold)


def _policy(policy: Policy | str | Path | None, folder: Path | None) -> Policy:
    if isinstance(policy, Policy):
        return policy
    if policy is not None:
        return Policy.load(policy)
    if folder is not None and (folder / POLICY_FILE).exists():
        return Policy.load(folder / POLICY_FILE)
    return Policy.default()
