"""Values to what a tier keeps of them, and back: the codec that a route asks for, the packs of a store, the stub."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nbmf.codec import dropin, format, stub
from nbmf.codec.codec import Codec
from nbmf.codec.group import NeuralGroups
from nbmf.codec.model import lookup, model_by_id
from nbmf.codec.numbers import rounded
from nbmf.codec.values import ARRAY, JSON, VECTOR, from_raw, to_raw
from nbmf.errors import CorruptRecord, NbmfError, StoreError, UnknownModel, UnsupportedValue
from nbmf.memory.packs import Packs
from nbmf.policy.policy import Policy
from nbmf.policy.rollout import Coder, Metrics, Shadow
from nbmf.policy.router import BASELINE, NEURAL, STORED, ZSTD, Route

STUB_FIRST: Final = b"{"  # the first byte of the old encoder's blobs, which no other blob has

_ID: Final = re.compile("[0-9a-f]{64}")  # a content id

Pair = tuple[int, bytes]  # a value's type number and raw bytes


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a tier keeps of a value. `encoder` is "neural", "zstd", "stored" or "stub"."""

    blob: bytes
    codec: str
    encoder: str


class Codecs:
    """The codecs of one store, by domain and by content id. Thread-safe.

    Packs that its records use lie in the store's own folder too, so that no record becomes unreadable when the pack
    that a policy names moves or is learned anew.
    """

    def __init__(self, policy: Policy, packs: Packs | None) -> None:
        self.policy = policy
        self.metrics = Metrics()
        self.packs = packs
        self._lock = threading.Lock()
        self._by_domain: dict[str, Codec] = {}
        self._by_id: dict[str, Codec] = {}
        self._base = Codec()
        self._by_id[self._base.id] = self._base
        self._shadows: dict[str, Shadow] = {}

    # -- which codec ---------------------------------------------------------------------------------------------------

    def of_domain(self, domain: str) -> Codec:
        """The codec that new records of a domain are written with; "" is the model alone.

        A domain is a pack's name or path, or its content id (hex) where the store has it.
        """
        if not domain:
            return self._base
        codec = self._by_domain.get(domain)
        if codec is None:
            if _ID.fullmatch(domain):
                codec = self.of_id(domain)
            else:
                try:
                    codec = Codec(domain=domain)
                except OSError as error:
                    raise StoreError(f"the pack {domain} cannot be read: {error.strerror or error}") from error
                if self.packs is not None and codec.pack is not None:
                    self.packs.keep(codec.pack)
            with self._lock:
                codec = self._by_id.setdefault(codec.id, codec)
                self._by_domain[domain] = codec
        return codec

    def of_id(self, id: str) -> Codec:
        """The codec that reads bare blobs of a content id (hex); any reads those of "". Raises UnknownModel."""
        if not id:
            return self._base
        codec = self._by_id.get(id)
        if codec is None:
            if not _ID.fullmatch(id):
                raise CorruptRecord(f"a record's codec id is none: {id!r}"[:200])
            pack = self.packs.find(id) if self.packs else None
            if pack is not None:
                codec = Codec(str(model_by_id(pack.model_id).path), domain=pack)
            else:
                model, pack = lookup(bytes.fromhex(id))
                codec = Codec(str(model.path), domain=pack)
            if codec.id != id:
                raise UnknownModel(id[:8])
            with self._lock:
                codec = self._by_id.setdefault(id, codec)
        return codec

    def usable(self, tenant: str, id: str) -> bool:
        """Whether new records of a tenant may still be coded with the codec of a content id: packs come and go."""
        return self.packs is None or id in ("", self._base.id) or self.packs.has(id, tenant)

    def dropped(self, ids: Collection[str]) -> None:
        """Forgets codecs whose packs are gone."""
        with self._lock:
            for id in ids:
                self._by_id.pop(id, None)
            gone = [name for name, codec in self._by_domain.items() if codec.id in ids]
            for name in gone:
                del self._by_domain[name]
                self._shadows.pop(name, None)

    def groups(self, id: str) -> NeuralGroups:
        """What codes an archive's blocks with the codec of a content id."""
        return NeuralGroups(self.of_id(id), self.of_id)

    # -- values --------------------------------------------------------------------------------------------------------

    def encode(self, route: Route, pair: Pair) -> Encoded:
        """The blob of a value that the route asks for, verified by decoding.

        Raises UnknownModel, PolicyError (a divergence in a protected class), CorruptRecord (verification failed).
        """
        codec = self.of_domain(route.domain or "")
        id = "" if route.domain is None else codec.id
        if route.shadow:
            written = self._shadow(route.domain or "").write(value_of(pair), route.encoder, route.protected)
            return Encoded(written.blob, codec.id if written.encoder == NEURAL else "", written.encoder)
        value_type, raw = pair
        if route.encoder == BASELINE:
            try:
                blob = _stub_blob(value_of(pair))
                exact = self.decode("", blob) == pair
            except NbmfError:  # it holds no bytes, no vectors and not every text
                exact = False
            if not exact:
                return self.encode(replace(route, encoder=ZSTD), pair)
        elif route.encoder == NEURAL:
            blob = codec.in_profile(route.profile).from_pair(value_type, raw, bare=True)
            if codec.raw(blob, bare=True) != pair:
                self.metrics.add(NEURAL, divergences_total=1)
                if value_type == ARRAY:
                    raise CorruptRecord(f"a blob of {len(blob)} bytes did not decode to its value")
                blob = _plain_blob(pair, zstd=True)
        elif value_type == ARRAY:  # which has one method alone, and that needs no model
            blob = self._base.from_pair(value_type, raw, bare=True)
        else:
            blob = _plain_blob(pair, zstd=route.encoder == ZSTD)
        if route.encoder in (ZSTD, STORED) and self._base.raw(blob, bare=True) != pair:
            raise CorruptRecord(f"a blob of {len(blob)} bytes did not decode to its value")
        self.metrics.wrote(route.encoder, len(raw), len(blob))
        return Encoded(blob, id, route.encoder)

    def within(self, route: Route, pair: Pair, exact: bool = False) -> tuple[Pair, Encoded | None]:
        """The value to store for one of fidelity semantic: with its numbers rounded, or its vectors within their bound,
        measured on what they decode to, and then with their blob. The value itself where nothing of it may change.

        With `exact` only what changes nothing: a vector that was decoded once has its small blob again. Only new values
        come here: what is stored already is moved as it is, so that nothing is lost twice.
        """
        value_type, raw = pair
        if route.fidelity != "semantic":
            return pair, None
        near, blob = pair, None
        if value_type >= VECTOR:
            codec = self.of_domain(route.domain or "")
            made = codec.encode(value_of(pair), bare=True, verify=True, fidelity="semantic", bound=route.bound)
            if format.is_array(made):
                near = codec.raw(made, bare=True)
                blob = Encoded(made, codec.id if format.is_packed(made) else "", route.encoder)
        elif value_type == JSON and route.tolerance:
            near = value_type, to_raw(rounded(value_of(pair), dict(route.tolerance)), allow_nan=True)[1]
        if exact and near != pair:
            return pair, None
        self.metrics.add(route.encoder, **{f"semantic_{'exact' if near == pair else 'writes'}_total": 1})
        if blob is not None:
            self.metrics.wrote(route.encoder, len(raw), len(blob.blob))
        return near, blob

    def encode_many(self, routes: Sequence[Route], pairs: Sequence[Pair]) -> list[Encoded]:
        """`encode` of each; those that go to one neural codec are coded on all cores."""
        out: list[Encoded | None] = [None] * len(pairs)
        together: dict[tuple[str, str], list[int]] = {}
        for i, route in enumerate(routes):
            if route.encoder == NEURAL and not route.shadow:
                together.setdefault((route.domain or "", route.profile), []).append(i)
            else:
                out[i] = self.encode(route, pairs[i])
        for (domain, profile), places in together.items():
            codec = self.of_domain(domain).in_profile(profile)
            blobs = codec.from_pairs([pairs[i] for i in places], bare=True)
            backs = codec.raw_many(blobs, bare=True)
            for i, blob, back in zip(places, blobs, backs, strict=True):
                if back != pairs[i]:
                    out[i] = self.encode(routes[i], pairs[i])
                    continue
                self.metrics.wrote(NEURAL, len(pairs[i][1]), len(blob))
                out[i] = Encoded(blob, codec.id, NEURAL)
        return [one for one in out if one is not None]

    def decode(self, codec: str, blob: bytes) -> Pair:
        """The type number and raw bytes of a stored blob, by what the blob and its codec id say.

        Raises CorruptRecord, FormatError, UnknownModel, OutputLimit.
        """
        if blob[:1] == STUB_FIRST:
            return self._base.to_pair(dropin.decode(stub.parse_text(blob)), allow_nan=True)
        return self.of_id(codec).raw(blob, bare=True)

    def decode_many(self, stored: list[tuple[str, bytes]]) -> list[Pair]:
        """`decode` of each (codec id, blob), on all cores."""
        out: list[Pair | None] = [None] * len(stored)
        together: dict[str, list[int]] = {}
        for i, (codec, blob) in enumerate(stored):
            if blob[:1] == STUB_FIRST:
                out[i] = self.decode(codec, blob)
            else:
                together.setdefault(codec, []).append(i)
        for codec, places in together.items():
            pairs = self.of_id(codec).raw_many([stored[i][1] for i in places], bare=True)
            for i, pair in zip(places, pairs, strict=True):
                out[i] = pair
        return [one for one in out if one is not None]

    def compare(self, value: Any) -> None:
        """After a read in shadow mode: tries both encoders on a sample of the values."""
        self._shadow("").compare(value)

    def _shadow(self, domain: str) -> Shadow:
        shadow = self._shadows.get(domain)
        if shadow is None:
            codec = self.of_domain(domain)
            shadow = Shadow(
                Coder(
                    NEURAL,
                    lambda value: codec.encode(value, bare=True, allow_nan=True),
                    lambda blob: codec.decode(blob, bare=True),
                ),
                Coder(BASELINE, _stub_blob, lambda blob: stub.decode(stub.parse_text(blob))),
                self.metrics,
                self.policy.rollout.compare_percent,
            )
            with self._lock:
                shadow = self._shadows.setdefault(domain, shadow)
        return shadow


def stored_blob(pair: Pair) -> bytes:
    """The bare blob that keeps the raw bytes as they are, which needs no model."""
    return _plain_blob(pair, zstd=False)


def value_of(pair: Pair) -> Any:
    """The value of a type number and raw bytes. A new one each time: whoever gets it may change it."""
    return from_raw(*pair)


def _stub_blob(value: Any) -> bytes:
    try:
        return json.dumps(stub.encode(value, fidelity="lossless"), separators=(",", ":")).encode()
    except ValueError as error:  # an integer that is longer than Python writes
        raise UnsupportedValue(f"the old encoder cannot hold it: {error}") from error


def _plain_blob(pair: Pair, zstd: bool) -> bytes:
    """A blob that needs no model: the smaller of stored and, if asked for, zstd."""
    value_type, raw = pair
    method, payload = format.STORED, raw
    if zstd and raw and len(frame := format.zstd_compress(raw)) < len(raw):
        method, payload = format.ZSTD, frame
    return format.build(method, value_type, format.crc(value_type, raw), payload, bare=True)
