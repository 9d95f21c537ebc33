"""The keys of a store: one master key wraps a random data key for every tenant, so that a tenant can be shredded.

A tenant is the first segment of a namespace. The key file holds no name, only keyed hashes. Its layout, integers
unsigned, entries sorted by name id:

    header   "NBMK", version 1, protection (0 none, 1 key, 2 passphrase), scrypt's log2 n, r, p, 3 zero bytes,
             salt (16 bytes), wrapped root key (40)
    entry    name id (16), file id (8), state (0 made, 1 live, 2 shredded), wrapped data key (40; zeros once shredded)
    check    keyed BLAKE2b-128 of all before it

Keys are wrapped with AES-256-KW (RFC 3394). Without protection they stand as they are, with a check: such a file still
lets a tenant be shredded, and hides nothing.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nbmf.errors import CorruptRecord, NbmfError, StoreError
from nbmf.store.files import FileLock, replace_file, store_error

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_SIZE: Final = 32  # bytes
KEY_VARIABLE: Final = "NBMF_KEY"
SEAL_OVERHEAD: Final = 28  # bytes: a nonce of 12, a tag of 16

SCRYPT: Final = (16, 8, 1)  # log2 n, r, p: 64 MiB and a quarter of a second
SCRYPT_MOST: Final = (20, 32, 16)  # what a key file may ask for

MADE, LIVE, SHREDDED = range(3)  # of an entry: its files may be missing; must be there; are to be deleted
NO_PROTECTION, BY_KEY, BY_PASSPHRASE = range(3)

_MAGIC: Final = b"NBMK\x01"
_NAME_ID: Final = 16
_FILE_ID: Final = 8
_WRAPPED: Final = KEY_SIZE + 8
_SALT: Final = 16
_PREFIX: Final = 12
_HEADER: Final = _PREFIX + _SALT + _WRAPPED
_ENTRY: Final = _NAME_ID + _FILE_ID + 1 + _WRAPPED
_CHECK: Final = 16
_NONCE: Final = 12
_TICK: Final = 1_000_000  # ns: every version of the file has a later time than the one before, on any file system


def master_key(source: bytes | str | os.PathLike[str] | None = None) -> bytes | None:
    """A master key of 32 bytes: from bytes, a text of hex or base64, a file (a path) of either, or else NBMF_KEY.

    None when there is no source and NBMF_KEY is not set. Raises StoreError (not 32 bytes, file not readable); no
    message shows any of the key.
    """
    if source is None:
        text = os.environ.get(KEY_VARIABLE)
        return None if text is None else _parsed(text.encode(), KEY_VARIABLE)
    if isinstance(source, bytes):
        return _parsed(source, "the master key")
    if isinstance(source, str):
        return _parsed(source.encode(), "the master key")
    path = Path(source)
    try:
        return _parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise store_error(path, error) from error


def _parsed(raw: bytes, what: str) -> bytes:
    if len(raw) == KEY_SIZE:
        return raw
    text = raw.strip()
    with contextlib.suppress(ValueError, binascii.Error):
        if len(text) == 2 * KEY_SIZE:
            return bytes.fromhex(text.decode("ascii"))
        key = base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=") + b"=", validate=True)
        if len(key) == KEY_SIZE:
            return key
    raise StoreError(f"{what} is not {KEY_SIZE} bytes in hex or base64")


class DataKey:
    """What encrypts one tenant's data: a database's key, and seals for what is kept in other files."""

    __slots__ = ("_key", "_seal")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._seal = self.derived("seal")

    def derived(self, purpose: str) -> bytes:
        """32 bytes for one purpose, such as "database"; those of two purposes tell nothing of each other."""
        return hashlib.blake2b(purpose.encode(), digest_size=KEY_SIZE, key=self._key, person=b"nbmf data key").digest()

    def seal(self, data: bytes, context: bytes) -> bytes:
        """`data` by AES-256-GCM: nonce, ciphertext, tag; 28 bytes longer. Only the same `context` opens it again.

        The nonce is random: one key is for fewer than 2**32 seals.
        """
        nonce = os.urandom(_NONCE)
        return nonce + _gcm(self._seal).encrypt(nonce, data, context)

    def unseal(self, sealed: bytes, context: bytes) -> bytes:
        """Raises CorruptRecord: changed, of another context, or of another tenant."""
        gcm = _gcm(self._seal)
        from cryptography.exceptions import InvalidTag

        try:
            if len(sealed) < SEAL_OVERHEAD:
                raise InvalidTag
            return gcm.decrypt(sealed[:_NONCE], sealed[_NONCE:], context)
        except InvalidTag:
            raise CorruptRecord(f"a seal of {len(sealed)} bytes is broken, or of another key or place") from None


@dataclass(frozen=True, slots=True)
class Entry:
    """A tenant's place in the key file. `file_id` names its files; it is never used again after a shredding."""

    name_id: bytes
    file_id: bytes
    state: int
    wrapped: bytes


class Keyring:
    """The key file of a store. Thread-safe, and for several processes at once: each sees the others' changes."""

    def __init__(
        self, path: str | os.PathLike[str], master: bytes | None = None, passphrase: str | None = None
    ) -> None:
        """Opens the key file, or makes it: protected by a key of 32 bytes, by a passphrase, or by nothing.

        Raises StoreError (wrong or missing key, unreadable file), CorruptRecord (the file was changed).
        """
        self.path = Path(path)
        self._files = FileLock(self.path.with_name(self.path.name + ".lock"))
        self._mutex = threading.RLock()
        self._seen: tuple[int, int, int] | None = None
        self._entries: dict[bytes, Entry] = {}  # by name id and file id
        self._by_name: dict[bytes, Entry] = {}  # by name id and in its order, those that are not shredded
        self._keys: dict[bytes, DataKey] = {}  # by file id
        self._master = (master, passphrase)
        with self._files.held():
            if self.path.exists():
                self._load()
            else:
                self._head, self._wrapper = _protection(master, passphrase, self.path)
                self._root = secrets.token_bytes(KEY_SIZE)
                self._store({})

    @property
    def protected(self) -> bool:
        """Whether a key or passphrase is needed to open it."""
        return self._head[len(_MAGIC)] != NO_PROTECTION

    def name_id(self, tenant: str) -> bytes:
        """What stands for the name, 16 bytes; the order of tenants."""
        return hashlib.blake2b(tenant.encode(), digest_size=_NAME_ID, key=self._root, person=b"nbmf tenant id").digest()

    @property
    def store_key(self) -> DataKey:
        """For what belongs to no tenant; it is never shredded."""
        return DataKey(self._root)

    def entries(self) -> list[Entry]:
        """Those of all tenants that are not shredded, in order."""
        with self._mutex:
            self._refresh()
            return list(self._by_name.values())

    def find(self, tenant: str) -> Entry | None:
        with self._mutex:
            self._refresh()
            return self._by_name.get(self.name_id(tenant))

    def current(self, entry: Entry) -> Entry | None:
        """The entry as it is now; None from the instant that anyone shredded it."""
        with self._mutex:
            self._refresh()
            held = self._by_name.get(entry.name_id)
            return held if held is not None and held.file_id == entry.file_id else None

    def holds(self, entry: Entry) -> bool:
        """Whether its key still is the tenant's."""
        return self.current(entry) is not None

    def key(self, entry: Entry) -> DataKey:
        """Raises StoreError when it was shredded."""
        with self._mutex:
            if (key := self._keys.get(entry.file_id)) is None:
                if entry.state == SHREDDED:
                    raise StoreError(f"the key of tenant {entry.name_id.hex()} was shredded")
                if not (raw := self._wrapper.unwrap(entry.wrapped)):
                    raise CorruptRecord(f"{self.path}: the key of tenant {entry.name_id.hex()} does not unwrap")
                key = self._keys[entry.file_id] = DataKey(raw)
            return key

    def data_key(self, tenant: str, make: bool = False) -> DataKey | None:
        """The tenant's key; None if it has none and `make` is not set."""
        entry = self.make(tenant) if make else self.find(tenant)
        return None if entry is None else self.key(entry)

    def make(self, tenant: str) -> Entry:
        """The tenant's entry; a new one, durable, if it has none."""
        found = self.find(tenant)
        if found is not None:
            return found
        with self.changing() as entries:
            name_id = self.name_id(tenant)
            if (found := self._by_name.get(name_id)) is None:
                wrapped = self._wrapper.wrap(secrets.token_bytes(KEY_SIZE))
                found = Entry(name_id, secrets.token_bytes(_FILE_ID), MADE, wrapped)
                self._store({**entries, name_id + found.file_id: found})
            return found

    def settle(self, entry: Entry) -> Entry:
        """Notes that its files are there; from then on they may not be missing."""
        with self.changing() as entries:
            settled = replace(entry, state=LIVE)
            if entries.get(entry.name_id + entry.file_id) == entry and settled != entry:
                self._store({**entries, entry.name_id + entry.file_id: settled})
            return settled

    def shred(self, tenant: str | Entry) -> Entry | None:
        """Destroys the tenant's key for good: what it encrypted can be read by nobody. None if it has none (any more).

        The entry stays, without key, until `drop`: it tells which files are to be deleted. The file's old bytes are
        overwritten; a medium that keeps old blocks, and copies, keep the key as wrapped as it was.
        """
        with self.changing() as entries:
            name_id = tenant.name_id if isinstance(tenant, Entry) else self.name_id(tenant)
            found = self._by_name.get(name_id)
            if found is None or (isinstance(tenant, Entry) and tenant.file_id != found.file_id):
                return None
            gone = replace(found, state=SHREDDED, wrapped=bytes(_WRAPPED))
            self._store({**entries, found.name_id + found.file_id: gone})
            return gone

    def shredded(self) -> list[Entry]:
        """Those whose files may still be there."""
        with self._mutex:
            self._refresh()
            return [entry for entry in self._entries.values() if entry.state == SHREDDED]

    def drop(self, entry: Entry) -> None:
        """Forgets a shredded entry: its files are deleted."""
        with self.changing() as entries:
            at = entry.name_id + entry.file_id
            if at in entries and entries[at].state == SHREDDED:
                self._store({id: held for id, held in entries.items() if id != at})

    def rotate(self, master: bytes | None = None, passphrase: str | None = None) -> None:
        """Wraps every key anew under another master key or passphrase; the old one opens nothing afterwards.

        Data is not encrypted anew. Other processes must open the store again. Raises StoreError (no protection, before
        or after).
        """
        with self.changing() as entries:
            if not self.protected or (master is None and passphrase is None):
                raise StoreError(f"{self.path}: only a protected store can change its key, and only to another")
            old = self._wrapper
            head, wrapper = _protection(master, passphrase, self.path)
            fresh = {
                at: entry
                if entry.state == SHREDDED
                else replace(entry, wrapped=wrapper.wrap(old.unwrap(entry.wrapped)))
                for at, entry in entries.items()
            }
            with self._mutex:
                kept = self._head, self._wrapper, self._master
                self._head, self._wrapper, self._master = head, wrapper, (master, passphrase)
                try:
                    self._store(fresh)
                except BaseException:
                    self._head, self._wrapper, self._master = kept
                    raise

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[bytes, Entry]]:
        """Holds the store's lock over all processes; yields the entries as they are then."""
        with self._files.held():
            with self._mutex:
                self._refresh()
                entries = self._entries
            yield entries

    # -- the file ------------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        try:
            if _identity(os.stat(self.path)) != self._seen:
                self._load()
        except OSError as error:
            raise store_error(self.path, error) from error

    def _load(self) -> None:
        raw, identity = _read_stable(self.path)
        head = raw[: _PREFIX + _SALT]
        entries_size = len(raw) - _HEADER - _CHECK
        if not raw.startswith(_MAGIC) or entries_size < 0 or entries_size % _ENTRY:
            raise StoreError(f"{self.path} is not a key file of this version")
        if self._seen is None or head != self._head:
            wrapper = _opened(head, *self._master, self.path)
            self._head, self._wrapper = head, wrapper
            root = wrapper.unwrap(raw[_PREFIX + _SALT : _HEADER])
            if not root:
                raise StoreError(
                    f"{self.path}: the {'master key' if self._master[1] is None else 'passphrase'} is wrong"
                )
            self._root = root
        if not hmac.compare_digest(self._mac(raw[:-_CHECK]), raw[-_CHECK:]):
            raise CorruptRecord(f"{self.path} was changed: its check does not match")
        entries = {}
        for at in range(_HEADER, len(raw) - _CHECK, _ENTRY):
            name_id, file_id, state, wrapped = _split(raw[at : at + _ENTRY], _NAME_ID, _FILE_ID, 1, _WRAPPED)
            entries[name_id + file_id] = Entry(name_id, file_id, state[0], wrapped)
        self._take(entries, identity)

    def _take(self, entries: dict[bytes, Entry], identity: tuple[int, int, int]) -> None:
        with self._mutex:
            self._entries = entries
            self._by_name = {at[:_NAME_ID]: entry for at, entry in sorted(entries.items()) if entry.state != SHREDDED}
            living = {entry.file_id for entry in self._by_name.values()}
            self._keys = {file_id: key for file_id, key in self._keys.items() if file_id in living}
            self._seen = identity

    def _store(self, entries: dict[bytes, Entry]) -> None:
        """Replaces the file durably, and overwrites the bytes of the one before."""
        body = self._head + self._wrapper.wrap(self._root)
        for _, entry in sorted(entries.items()):
            body += entry.name_id + entry.file_id + bytes([entry.state]) + entry.wrapped
        try:
            with contextlib.ExitStack() as stack:
                # Windows replaces no open file.
                reached = sys.platform != "win32" and self.path.exists()
                old = stack.enter_context(open(self.path, "r+b")) if reached else None
                newest = max(time.time_ns(), (self._seen[1] if self._seen else 0) + _TICK)
                replace_file(self.path, body + self._mac(body), mtime_ns=newest)
                self._take(entries, _identity(os.stat(self.path)))
                if old is not None:
                    old.write(bytes(os.fstat(old.fileno()).st_size))
                    old.flush()
                    os.fsync(old.fileno())
        except OSError as error:
            raise store_error(self.path, error) from error

    def _mac(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, digest_size=_CHECK, key=self._root, person=b"nbmf key file").digest()


# -- protection --------------------------------------------------------------------------------------------------------


class _Wrapper:
    """Wraps keys under a key, or under none."""

    def __init__(self, key: bytes | None) -> None:
        self._key = key
        if key is not None:
            _need_cryptography()

    def wrap(self, key: bytes) -> bytes:
        if self._key is None:
            return key + hashlib.blake2b(key, digest_size=_WRAPPED - KEY_SIZE).digest()
        from cryptography.hazmat.primitives.keywrap import aes_key_wrap

        return aes_key_wrap(self._key, key)

    def unwrap(self, wrapped: bytes) -> bytes:
        """b"" if it is not wrapped under this key."""
        if self._key is None:
            key = wrapped[:KEY_SIZE]
            return key if self.wrap(key) == wrapped else b""
        from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

        try:
            return aes_key_unwrap(self._key, wrapped)
        except InvalidUnwrap:
            return b""


def _protection(master: bytes | None, passphrase: str | None, path: Path) -> tuple[bytes, _Wrapper]:
    """A new header without the root key, and what wraps under it."""
    if passphrase is not None:
        kind, cost = BY_PASSPHRASE, SCRYPT
    else:
        kind, cost = (BY_KEY if master is not None else NO_PROTECTION), (0, 0, 0)
    head = _MAGIC + bytes([kind, *cost]) + bytes(_PREFIX - len(_MAGIC) - 4) + os.urandom(_SALT)
    return head, _opened(head, master, passphrase, path)


def _opened(head: bytes, master: bytes | None, passphrase: str | None, path: Path) -> _Wrapper:
    """What wraps under the header. Raises StoreError: another kind of key is needed."""
    kind, *cost = head[len(_MAGIC) : len(_MAGIC) + 4]
    salt = head[_PREFIX:]
    if master is not None and passphrase is not None:
        raise StoreError(f"{path} takes a master key or a passphrase, not both")
    if any(head[len(_MAGIC) + 4 : _PREFIX]) or kind > BY_PASSPHRASE:
        raise StoreError(f"{path} is not a key file of this version")
    if kind == NO_PROTECTION:
        if master is not None or passphrase is not None:
            raise StoreError(f"{path} belongs to a store that is not encrypted: it takes no key")
        return _Wrapper(None)
    if kind == BY_KEY:
        if master is None:
            raise StoreError(f"{path} needs the store's master key")
        if len(master) != KEY_SIZE:
            raise StoreError(f"a master key has {KEY_SIZE} bytes, not {len(master)}")
        return _Wrapper(hashlib.blake2b(salt, digest_size=KEY_SIZE, key=master, person=b"nbmf wrap").digest())
    if not passphrase:
        raise StoreError(f"{path} needs the store's passphrase")
    if any(value > most or value < 1 for value, most in zip(cost, SCRYPT_MOST, strict=True)):
        raise StoreError(f"{path} asks for scrypt parameters that are out of bounds")
    log2_n, r, p = cost
    return _Wrapper(
        hashlib.scrypt(
            passphrase.encode(),
            salt=salt,
            n=1 << log2_n,
            r=r,
            p=p,
            dklen=KEY_SIZE,
            maxmem=(128 * r << log2_n) + (1 << 26),
        )
    )


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise NbmfError("an encrypted store needs nbmf[encrypt]") from None


def _gcm(key: bytes) -> AESGCM:
    _need_cryptography()
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _read_stable(path: Path) -> tuple[bytes, tuple[int, int, int]]:
    """The file's bytes. Whoever replaces it then overwrites the old one: what was read meanwhile is read again."""
    try:
        while True:
            with open(path, "rb") as file:
                raw = file.read()
                read, there = os.fstat(file.fileno()), os.stat(path)
                if os.path.samestat(read, there):
                    return raw, _identity(read)
    except OSError as error:
        raise store_error(path, error) from error


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _split(raw: bytes, *sizes: int) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield raw[at : at + size]
        at += size


__all__ = ["SEAL_OVERHEAD", "DataKey", "Entry", "Keyring", "master_key"]
