"""The port that both databases share: transitions go in, results come out.

    store method ──> transition ──> Database.run ──> rows ──> result

A transition is one move of the house, written once and knowing no driver: a generator that yields
calls (a statement and its parameters), is sent the rows, and returns the result. Everything that
one transition yields is one database transaction; raising from it undoes all of it:

    RENAME = Statement(
        update(api_key)
        .where(api_key.c.id == bindparam("key_id"))
        .values(name=bindparam("new_name"))
        .returning(api_key.c.id)
    )

    def rename(key_id: str, name: str) -> Transition[None]:
        rows = yield RENAME({"key_id": key_id, "new_name": name})
        if not rows:
            raise NotFound("no such key")

    await database.run(rename(key_id, name))

Transitions compose with `yield from`: a hold on a budget and the acceptance of a prediction can be
one transaction. Writes that guard themselves end in RETURNING, and no row means that the guard
failed: row counts are not part of the port. `Database.read` runs a transition of SELECTs.

A statement that writes predictions names the row by the parameter `prediction_id` (a new one by its
`id`), or returns its id as the first column: a database that nobody else writes to tells its
watchers by it.

Values are int, float, str and None only, in both databases: times are microseconds since the epoch
(see codec.py), truth is 0 or 1, structure is JSON text. A SELECT gives tuples in column order. The
name of a bindparam must not be the name of a column that the same statement sets.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast

from sqlalchemy import Dialect
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Delete, Insert, Update
from sqlalchemy.sql.elements import ClauseElement

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Param: TypeAlias = int | float | str | None
Row: TypeAlias = tuple[Any, ...]  # the columns of a SELECT or RETURNING, as the transition knows
Rows: TypeAlias = Sequence[Row]


SQLITE: Dialect = SQLiteDialect(paramstyle="qmark")
POSTGRESQL: Dialect = PGDialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


class Compiled(NamedTuple):
    """SQL of one dialect, and how its parameters line up."""

    sql: str
    pick: Callable[[Mapping[str, Param]], tuple[Param, ...]]
    writes: str  # the table that it changes; "" when it is a SELECT
    remembers: str  # the table whose rows a writer may remember, see `Statement`


class Call(NamedTuple):
    """One statement with its parameters by name."""

    statement: "Statement"
    params: Mapping[str, Param]


Transition: TypeAlias = Generator[Call, Rows, T]


class Statement:
    """A SQLAlchemy Core construct, compiled once per database. Calling it gives a `Call`.

    `postgresql` is for the rare construct that the two databases spell by different classes.
    `remembers` names the one table that a SELECT reads, where it is read at every acceptance and
    seldom written: a database that has a single writer answers it from memory until then.
    """

    def __init__(
        self,
        construct: Executable,
        postgresql: Executable | None = None,
        *,
        remembers: str = "",
    ) -> None:
        self._construct = construct
        self._postgresql = construct if postgresql is None else postgresql
        self._remembers = remembers

    def __call__(self, params: Mapping[str, Param]) -> Call:
        return Call(self, params)

    @cached_property
    def sqlite(self) -> Compiled:
        return _compiled(self._construct, SQLITE, self._remembers)

    @cached_property
    def postgresql(self) -> Compiled:
        return _compiled(self._postgresql, POSTGRESQL, self._remembers)


class Database(Protocol):
    """Runs transitions, each as one transaction, durable once `run` returns."""

    async def start(self) -> None:
        """Open, bring the schema up to date; StartupError saying what to do."""
        ...

    async def stop(self) -> None: ...

    def watch(self, changed: Callable[[str], None]) -> bool:
        """Call `changed` on the event loop with the id of every prediction that a commit changed,
        before whoever wrote it hears of the commit. False: what `fetch` gave may have changed
        unseen."""
        ...

    async def run(self, transition: Transition[T]) -> T:
        """One transaction; what the transition raises is raised here, with nothing written."""
        ...

    async def fetch(self, call: Call) -> Rows:
        """One SELECT of a few rows by an index, without the ceremony of `read`."""
        ...

    async def read(self, transition: Transition[T]) -> T:
        """SELECTs of a few rows by an index; each sees what was committed by then."""
        ...

    async def scan(self, transition: Transition[T]) -> T:
        """SELECTs that may look at many rows: lists, counts, sums."""
        ...


def _compiled(construct: Executable, dialect: Dialect, remembers: str) -> Compiled:
    compiled = cast(SQLCompiler, cast(ClauseElement, construct).compile(dialect=dialect))
    names = tuple(compiled.positiontup or ())
    # Values written into the construct itself (limits, literals) travel as parameters too.
    fixed = {name: value for name, value in compiled.params.items() if value is not None}
    writes = ""
    if isinstance(construct, Insert | Update | Delete):
        writes = str(construct.table)
    return Compiled(str(compiled), _picker(names, fixed), writes, remembers)


def _picker(
    names: tuple[str, ...], fixed: Mapping[str, Param]
) -> Callable[[Mapping[str, Param]], tuple[Param, ...]]:
    if not names:
        return lambda params: ()
    if fixed.keys() & set(names):
        return lambda params: tuple(
            params[name] if name in params else fixed[name] for name in names
        )
    if len(names) == 1:
        (name,) = names
        return lambda params: (params[name],)
    return cast(Callable[[Mapping[str, Param]], tuple[Param, ...]], itemgetter(*names))
