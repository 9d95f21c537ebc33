"""NBMFText and NBMFJSON in SQLite and in PostgreSQL, by SQLAlchemy's core and its ORM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Engine, Integer, MetaData, Table, Text, create_engine, func, insert, select, text
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import nbmf
from nbmf.errors import CorruptRecord, FormatError, PolicyError, UnknownModel, UnsupportedValue
from nbmf.integrations.sqlalchemy import NBMFJSON, NBMFText

TALK = "The invoice for March was sent twice, could you cancel the second one? She answered within the hour."


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str | None] = mapped_column(NBMFText())
    facts: Mapped[Any] = mapped_column(MutableDict.as_mutable(NBMFJSON()), nullable=True)
    tags: Mapped[Any] = mapped_column(MutableList.as_mutable(NBMFJSON()), nullable=True)


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path / 'notes.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(url)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def test_values_come_back_equal_and_lie_small(engine: Engine) -> None:
    facts = {"z": [1, 1.0, True, None], "a": {"é": TALK}}
    with Session(engine) as session:
        session.add(Note(id=1, body=TALK, facts=facts, tags=["x", 2]))
        session.add(Note(id=2))
        session.commit()
    with Session(engine) as session:
        note, empty = session.scalars(select(Note).order_by(Note.id))
        assert note.body == TALK and type(note.body) is str
        assert repr(dict(note.facts)) == repr(facts) and list(note.tags) == ["x", 2]
        assert empty.body is empty.facts is empty.tags is None
        blob = session.execute(text("SELECT body FROM notes WHERE id = 1")).scalar_one()
        assert len(bytes(blob)) < len(TALK) / 2 and nbmf.decode(bytes(blob)) == TALK
        assert session.execute(text("SELECT facts FROM notes WHERE id = 2")).scalar_one() is None


def test_changes_within_a_value_are_saved(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Note(id=1, facts={"n": 1}, tags=[1]))
        session.commit()
        note = session.get_one(Note, 1)
        note.facts["m"] = [2]
        note.tags.append({"t": 3})
        note.body = "new"
        session.commit()
    with Session(engine) as session:
        note = session.get_one(Note, 1)
        assert (note.facts, note.tags, note.body) == ({"n": 1, "m": [2]}, [1, {"t": 3}], "new")


def test_sql_compares_a_column_with_null_alone(engine: Engine) -> None:
    with Session(engine) as session:
        session.add_all([Note(id=1, body="a"), Note(id=2)])
        session.commit()
        for condition, ids in (
            (Note.body.is_(None), [2]),
            (Note.body.is_not(None), [1]),
            (Note.body == None, [2]),  # noqa: E711
            (Note.body != None, [1]),  # noqa: E711
        ):
            assert list(session.scalars(select(Note.id).where(condition))) == ids
        assert session.execute(select(func.count(Note.body))).scalar_one() == 1
    body: Any = Note.body
    for ask in (
        lambda: body == "a",
        lambda: body != "a",
        lambda: body > "a",
        lambda: body.like("a%"),
        lambda: body.in_(["a"]),
        lambda: body + "a",
        lambda: "a" + body,
        lambda: body.desc(),
        lambda: Note.facts["n"],
    ):
        with pytest.raises(PolicyError, match="compared with NULL alone"):
            ask()


@pytest.mark.parametrize(
    ("kind", "bad"), [(NBMFText, b"x"), (NBMFText, 1), (NBMFJSON, b"x"), (NBMFJSON, {"t": (1,)}), (NBMFJSON, {1})]
)
def test_what_a_column_does_not_hold(tmp_path: Path, kind: Any, bad: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    table = Table("x", MetaData(), Column("id", Integer, primary_key=True), Column("v", kind()))
    table.create(engine)
    with engine.begin() as connection, pytest.raises((UnsupportedValue, StatementError)) as caught:
        connection.execute(insert(table), {"v": bad})
    error = caught.value.orig if isinstance(caught.value, StatementError) else caught.value
    assert isinstance(error, UnsupportedValue)
    engine.dispose()


def test_foreign_and_damaged_cells_are_told(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    table = Table("x", MetaData(), Column("id", Integer, primary_key=True), Column("v", NBMFText()))
    table.create(engine)
    damaged = bytearray(nbmf.encode(TALK))
    damaged[len(damaged) // 2] ^= 1
    for cell, error in ((b"plain", FormatError), (bytes(damaged), CorruptRecord), (nbmf.encode({"a": 1}), FormatError)):
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM x"))
            connection.execute(text("INSERT INTO x (v) VALUES (:v)"), {"v": cell})
            with pytest.raises((error, CorruptRecord)):
                connection.execute(select(table)).all()
    engine.dispose()


def test_a_column_with_a_pack(tmp_path: Path) -> None:
    pack = tmp_path / "notes.nbp"
    nbmf.adapt([f"{TALK} {i}" for i in range(200)], out=pack)
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    columns = [Column(name, kind) for name, kind in (("a", NBMFText(nbmf.Codec(domain=str(pack)))), ("b", NBMFText()))]
    table = Table("x", MetaData(), Column("id", Integer, primary_key=True), *columns)
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(insert(table), {"a": TALK, "b": TALK})
        assert connection.execute(select(table.c.a, table.c.b)).one() == (TALK, TALK)
        sizes = connection.execute(text("SELECT length(a), length(b) FROM x")).one()
        assert sizes[0] < sizes[1]
        with pytest.raises(UnknownModel):
            connection.execute(text("SELECT a FROM x").columns(a=NBMFText())).all()
    engine.dispose()


def test_the_type_as_alembic_and_the_statement_cache_see_it() -> None:
    assert repr(NBMFText()) == "NBMFText()" and repr(NBMFJSON()) == "NBMFJSON()"
    assert NBMFText().cache_ok and NBMFText()._static_cache_key == NBMFText()._static_cache_key
    codec = nbmf.Codec()
    assert NBMFText(codec)._static_cache_key != NBMFText()._static_cache_key
    assert NBMFText(codec).copy().codec is codec and NBMFText().python_type is str and NBMFJSON().python_type is dict


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(JSON)
def test_every_json_value_comes_back(value: Any) -> None:
    kind: Any = NBMFJSON()
    out = kind.process_result_value(kind.process_bind_param(value, None), None)
    assert type(out) is type(value) and repr(out) == repr(value)


def test_a_plain_column_stays_plain(engine: Engine) -> None:
    """The types do not get in the way of others in one table."""
    table = Table(
        "mixed", MetaData(), Column("id", Integer, primary_key=True), Column("t", Text), Column("v", NBMFText())
    )
    table.drop(engine, checkfirst=True)
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(insert(table), [{"t": f"k{i}", "v": f"{TALK} {i}"} for i in range(20)])
        assert connection.execute(select(table.c.v).where(table.c.t == "k7")).scalar_one() == f"{TALK} 7"
    table.drop(engine)
