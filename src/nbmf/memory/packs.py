"""The domain packs of a store: those that its policy names, and those learned from a tenant's own records.

    packs/shared/<content id>.nbp        copies of the packs that a policy names
    packs/<tenant>/<content id>.nbp      learned from that tenant's records; the folder's name is a hash of the tenant's
    packs/<tenant>/current               the content id (hex) that its new records are coded with
    packs/forgotten                      another text whenever something is forgotten

A pack's file is COMPRESSED, the CRC-32 of what follows, little endian, and a zstd frame of the pack, about half its
size; or, as in older stores, the pack itself. It holds text of the records it was learned from. In an encrypted store
its file is sealed, a tenant's with the tenant's key, so that it goes where the key goes. A tenant's pack is deleted
only alone (gate.py), once no record uses it and `current` does not name it; whoever stores records looks, with the
others, whether their pack is still there.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from nbmf.codec.format import zstd_compress, zstd_decompress
from nbmf.codec.model import PACK_SUFFIX, Pack, pack_of
from nbmf.errors import CorruptRecord, NbmfError, StoreError
from nbmf.store.base import Fault
from nbmf.store.files import FileLock, replace_file, store_error, sync_directory
from nbmf.store.keys import DataKey, Keyring

SHARED: Final = "shared"
CURRENT: Final = "current"
FORGOTTEN: Final = "forgotten"
LOCK: Final = "lock"
COMPRESSED: Final = b"NBPZ"  # how a compressed pack's file begins
PACK_MOST: Final = 256 << 20  # bytes of a pack, decompressed
UNFINISHED: Final = ".new"  # what `replace_file` leaves behind when it is killed

_ID: Final = re.compile("[0-9a-f]{64}")  # a content id


class Packs:
    """The folder of a store's packs. `keys` is the keyring of an encrypted store, else None. Thread-safe."""

    def __init__(self, folder: Path, keys: Keyring | None) -> None:
        self.folder = folder
        self._keys = keys

    def find(self, id: str) -> Pack | None:
        """The pack of a content id (hex), None if it is not here.

        Raises StoreError, FormatError, CorruptRecord, OutputLimit.
        """
        for path in sorted(self.folder.glob(f"*/{id}{PACK_SUFFIX}")):
            if (pack := self._read(path)) is not None:
                return pack
        return None

    def has(self, id: str, tenant: str) -> bool:
        """Whether new records of a tenant may be coded with the pack of a content id (hex)."""
        return id == self.current(tenant) or (self.folder / SHARED / f"{id}{PACK_SUFFIX}").exists()

    def keep(self, pack: Pack) -> None:
        """Copies a pack that a policy names into the store."""
        path = self.folder / SHARED / f"{pack.id.hex()}{PACK_SUFFIX}"
        if path.exists():
            return
        _make(self.folder)
        with FileLock(self.folder / LOCK).held():
            if not path.exists():
                self._write(path, bytes(pack.buffer), pack.id.hex())

    def learned(self, tenant: str, data: bytes) -> Pack:
        """Keeps a pack learned from a tenant's records, the one for its new records from now on. Alone only."""
        pack = pack_of(Path(), data)
        folder = self._folder_of(tenant)
        self._write(folder / f"{pack.id.hex()}{PACK_SUFFIX}", data, pack.id.hex())
        try:
            replace_file(folder / CURRENT, pack.id.hex().encode())
        except OSError as error:
            raise store_error(folder / CURRENT, error) from error
        return pack

    def current(self, tenant: str) -> str:
        """The content id of the pack for a tenant's new records, "" for none."""
        folder = self._folder_of(tenant)
        try:
            id = (folder / CURRENT).read_bytes().decode("ascii")
        except (OSError, UnicodeDecodeError):
            return ""
        return id if _ID.fullmatch(id) and (folder / f"{id}{PACK_SUFFIX}").exists() else ""

    def of(self, tenant: str) -> list[str]:
        """The content ids of all packs learned from a tenant's records."""
        return sorted(path.stem for path in self._folder_of(tenant).glob(f"*{PACK_SUFFIX}"))

    def retire(self, tenant: str) -> None:
        """No new record is coded with any pack of the tenant from now on. Alone only."""
        path = self._folder_of(tenant) / CURRENT
        try:
            if path.exists():
                path.unlink()
                sync_directory(path.parent)
        except OSError as error:
            raise store_error(path, error) from error

    def drop(self, tenant: str, keep: str = "") -> None:
        """Deletes the packs of a tenant, all but `keep`. No record may use them any more. Alone only."""
        folder = self._folder_of(tenant)
        if not keep:
            _remove(folder)
            return
        for path in folder.glob(f"*{PACK_SUFFIX}*"):
            if path.name != f"{keep}{PACK_SUFFIX}":
                _remove(path)

    def drop_others(self, tenants: Collection[str]) -> list[str]:
        """Deletes what belongs to no tenant of these; the content ids of the packs that went. Alone only."""
        known = {self._folder_of(tenant).name for tenant in tenants} | {SHARED}
        gone: list[str] = []
        for folder in sorted(self.folder.glob("*")):
            if folder.is_dir() and folder.name not in known:
                gone += [path.stem for path in folder.glob(f"*{PACK_SUFFIX}")]
                _remove(folder)
        for name in known - {SHARED}:
            for path in (self.folder / name).glob(f"*{UNFINISHED}"):
                _remove(path)
        return gone

    def files(self) -> Iterator[Path]:
        """The files of all packs."""
        yield from sorted(self.folder.glob(f"*/*{PACK_SUFFIX}"))

    def learning(self) -> bytes:
        """`forgotten` now, of a pack that begins to be learned; from here on it tells."""
        _make(self.folder)
        return self.forgotten()

    def forgotten(self) -> bytes:
        """What differs from before when anything was forgotten since."""
        try:
            return (self.folder / FORGOTTEN).read_bytes()
        except OSError:
            return b""

    def forgetting(self) -> None:
        """Notes that something is forgotten: a pack that is being learned meanwhile is not to be kept. Alone only."""
        if not self.folder.exists():
            return
        path = self.folder / FORGOTTEN
        try:
            replace_file(path, secrets.token_hex(8).encode())
        except OSError as error:
            raise store_error(path, error) from error

    def check(self) -> Iterator[Fault]:
        """Packs that cannot be read, and tenants whose new records' pack is not there."""
        for path in self.files():
            try:
                if self._read(path) is None:
                    yield Fault(str(path), "is sealed, and its key is not in the key file")
            except NbmfError as error:
                yield Fault(str(path), str(error))
        for path in sorted(self.folder.glob(f"*/{CURRENT}")):
            id = path.read_bytes().decode("ascii", "replace")
            if not _ID.fullmatch(id) or not path.with_name(f"{id}{PACK_SUFFIX}").exists():
                yield Fault(str(path), "names no pack that is there")

    def _folder_of(self, tenant: str) -> Path:
        name = self._keys.name_id(tenant) if self._keys else hashlib.blake2b(tenant.encode(), digest_size=16).digest()
        return self.folder / name.hex()

    def _key(self, folder: str) -> DataKey | None:
        assert self._keys is not None
        if folder == SHARED:
            return self._keys.store_key
        for entry in self._keys.entries():
            if entry.name_id.hex() == folder:
                return self._keys.key(entry)
        return None

    def _read(self, path: Path) -> Pack | None:
        """None: it is sealed, and there is no key for it."""
        id = path.stem
        try:
            data = path.read_bytes()
        except OSError as error:
            raise store_error(path, error) from error
        if self._keys is not None:
            key = self._key(path.parent.name)
            if key is None or not _ID.fullmatch(id):
                return None
            data = key.unseal(data, _context(id))
        if data.startswith(COMPRESSED):
            data = _decompressed(path, data)
        pack = pack_of(path, data)
        if pack.id.hex() != id:
            raise StoreError(f"{path} is another pack than its name says")
        return pack

    def _write(self, path: Path, pack: bytes, id: str) -> None:
        frame = zstd_compress(pack)
        data = COMPRESSED + zlib.crc32(frame).to_bytes(4, "little") + frame
        try:
            _make(self.folder)
            _make(path.parent)
            if self._keys is not None:
                key = self._key(path.parent.name)
                if key is None:
                    raise StoreError(f"{path}: no key for it")
                data = key.seal(data, _context(id))
            replace_file(path, data)
        except OSError as error:
            raise store_error(path, error) from error


def _decompressed(path: Path, data: bytes) -> bytes:
    """The pack of a file that begins with COMPRESSED. Raises CorruptRecord, OutputLimit."""
    start = len(COMPRESSED) + 4
    if zlib.crc32(data[start:]) != int.from_bytes(data[len(COMPRESSED) : start], "little"):
        raise CorruptRecord(f"{path}: the pack's check is wrong")
    return zstd_decompress(data[start:], PACK_MOST)


def _make(folder: Path) -> None:
    """Makes a folder, durably. Raises StoreError."""
    try:
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            sync_directory(folder.parent)
    except OSError as error:
        raise store_error(folder, error) from error


def _remove(path: Path) -> None:
    """Deletes a file, or a folder with what is in it, durably. One that is not there is fine."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.exists():
            sync_directory(path.parent)
    except OSError as error:
        raise store_error(path, error) from error


def _context(id: str) -> bytes:
    return b"pack " + bytes.fromhex(id)


__all__ = ["Packs"]
