"""The schema, for both databases: times are microseconds, truth is 0 or 1, structure is JSON text.

    prediction ──< event          blob_use: who still needs a blob
        │ ├─────< delivery        attempt ──< ledger: paid work and its money, never deleted
        └ blob_use >── (blobs)    api_key, budget, price, channel_state, node, meta

Free text of callers lives inside the JSON columns, where escapes keep NUL and lone surrogates
harmless. Ids are 32 hex digits.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _maybe_text(name: str) -> Column[str]:
    return Column(name, Text)


def _time(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _maybe_time(name: str) -> Column[int]:
    return Column(name, BigInteger)


def _number(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False)


def _flag(name: str) -> Column[int]:
    return Column(name, SmallInteger, nullable=False)


def _micro(name: str) -> Column[int]:
    """Money: millionths of a USD."""
    return Column(name, BigInteger, nullable=False)


def _id() -> Column[str]:
    return Column("id", Text, primary_key=True)


def _of_prediction() -> Column[str]:
    return Column(
        "prediction_id",
        Text,
        ForeignKey("prediction.id", ondelete="CASCADE"),
        nullable=False,
    )


prediction = Table(
    "prediction",
    METADATA,
    _id(),
    _text("key_id"),  # "" when nobody's key
    _text("tenant_id"),
    _text("dialect"),
    _text("model"),  # the card
    _text("model_name"),  # as the caller spelled it
    _text("engine"),
    _text("status"),
    _number("priority"),
    _time("created_at"),
    _maybe_time("started_at"),
    _maybe_time("finished_at"),
    _maybe_time("deadline_at"),
    _number("attempt"),  # the fence
    _maybe_text("lease_owner"),
    _maybe_time("lease_until"),
    _flag("cancel_requested"),
    Column("progress", Float, nullable=False),
    _text("served_by"),
    _flag("data_removed"),
    _number("last_seq"),  # of its events
    _maybe_text("idem_key"),
    _maybe_text("idem_hash"),
    _text("request"),
    _text("origin"),
    _text("outputs"),
    _maybe_text("failure"),
    _text("metrics"),
    _text("logs"),  # one JSON string
    UniqueConstraint("key_id", "idem_key"),
)

# The dispatcher's queue: a covering index that holds queued rows only.
Index(
    "ix_prediction_queued",
    prediction.c.engine,
    prediction.c.priority.desc(),
    prediction.c.created_at,
    prediction.c.id,
    sqlite_where=text("status = 'queued'"),
    postgresql_where=text("status = 'queued'"),
)
Index(
    "ix_prediction_lease",
    prediction.c.lease_until,
    sqlite_where=text("status = 'running'"),
    postgresql_where=text("status = 'running'"),
)
Index(
    "ix_prediction_deadline",
    prediction.c.deadline_at,
    sqlite_where=text("deadline_at IS NOT NULL AND finished_at IS NULL"),
    postgresql_where=text("deadline_at IS NOT NULL AND finished_at IS NULL"),
)
Index(
    "ix_prediction_unfinished",
    prediction.c.key_id,
    sqlite_where=text("finished_at IS NULL"),
    postgresql_where=text("finished_at IS NULL"),
)
Index(
    "ix_prediction_strip",
    prediction.c.finished_at,
    sqlite_where=text("finished_at IS NOT NULL AND data_removed = 0"),
    postgresql_where=text("finished_at IS NOT NULL AND data_removed = 0"),
)
Index("ix_prediction_created", prediction.c.created_at, prediction.c.id)
Index("ix_prediction_key", prediction.c.key_id, prediction.c.created_at, prediction.c.id)

event = Table(
    "event",
    METADATA,
    Column(
        "prediction_id",
        Text,
        ForeignKey("prediction.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    _text("kind"),
    _time("at"),
    _text("data"),
    sqlite_with_rowid=False,
)

delivery = Table(
    "delivery",
    METADATA,
    _id(),  # the webhook id
    _of_prediction(),
    _text("kind"),
    _text("url"),
    _time("created_at"),
    _time("next_at"),
    _number("tries"),
    _text("state"),
    _number("last_status"),
    _text("last_error"),
)
Index("ix_delivery_prediction", delivery.c.prediction_id)
Index(
    "ix_delivery_due",
    delivery.c.next_at,
    sqlite_where=text("state = 'pending'"),
    postgresql_where=text("state = 'pending'"),
)
Index("ix_delivery_created", delivery.c.created_at, delivery.c.id)

file = Table(
    "file",
    METADATA,
    _id(),
    _text("key_id"),  # "" when nobody's key
    _time("created_at"),
    _time("expires_at"),
    _text("info"),  # blob, name, md5, metadata
)
Index("ix_file_key", file.c.key_id, file.c.created_at, file.c.id)
Index("ix_file_created", file.c.created_at, file.c.id)
Index("ix_file_expires", file.c.expires_at)

blob_use = Table(
    "blob_use",
    METADATA,
    Column("blob_key", Text, primary_key=True),
    Column("owner_id", Text, primary_key=True),  # a prediction or a file
    sqlite_with_rowid=False,
)
Index("ix_blob_use_owner", blob_use.c.owner_id)

api_key = Table(
    "api_key",
    METADATA,
    _id(),
    _text("name"),
    _text("prefix"),
    Column("hash", Text, nullable=False, unique=True),
    _text("tenant_id"),
    _flag("is_admin"),
    _text("limits"),  # models, rate, concurrency, budget
    _time("created_at"),
    _maybe_time("expires_at"),
    _maybe_time("revoked_at"),
    _maybe_time("last_used_at"),
)

# Paid work. Rows outlive their prediction, so that no money is ever unexplained.
attempt = Table(
    "attempt",
    METADATA,
    _id(),  # the token that travels with the submission
    _text("prediction_id"),
    _number("fence"),  # prediction.attempt
    _text("channel"),
    _text("upstream_model"),
    _text("state"),  # intent · accepted · done · failed · canceled · void · unknown
    _maybe_text("upstream_id"),
    _maybe_text("poll_url"),
    _time("created_at"),
    _maybe_time("submitted_at"),
    _maybe_time("next_poll_at"),
    _number("poll_count"),
    _maybe_text("lease_owner"),
    _maybe_time("lease_until"),
    _maybe_time("finished_at"),
    _micro("cost_micro"),
    _maybe_text("error"),
    _text("detail"),
)
Index("ix_attempt_prediction", attempt.c.prediction_id, attempt.c.fence)
Index("ix_attempt_upstream", attempt.c.channel, attempt.c.upstream_id)
Index(
    "ix_attempt_poll",
    attempt.c.next_poll_at,
    sqlite_where=text("next_poll_at IS NOT NULL"),
    postgresql_where=text("next_poll_at IS NOT NULL"),
)
Index(
    "ix_attempt_open",
    attempt.c.channel,
    attempt.c.state,
    sqlite_where=text("finished_at IS NULL"),
    postgresql_where=text("finished_at IS NULL"),
)

ledger = Table(
    "ledger",
    METADATA,
    _id(),
    _text("key_id"),
    _maybe_text("prediction_id"),
    _maybe_text("attempt_id"),
    _text("kind"),  # hold · settle · release · adjust
    _micro("micro"),
    _maybe_text("price_id"),
    _time("at"),
)
Index("ix_ledger_key", ledger.c.key_id, ledger.c.at)
Index("ix_ledger_prediction", ledger.c.prediction_id)

price = Table(
    "price",
    METADATA,
    _id(),
    _text("model"),
    _text("channel"),
    _text("rule"),
    _time("valid_from"),
)
Index("ix_price_model", price.c.model, price.c.channel, price.c.valid_from)

budget = Table(
    "budget",
    METADATA,
    Column("owner", Text, primary_key=True),  # a key
    Column("period", Text, primary_key=True),  # "2026-11"
    _micro("limit_micro"),
    _micro("held_micro"),
    _micro("spent_micro"),
)

channel_state = Table(
    "channel_state",
    METADATA,
    Column("channel", Text, primary_key=True),
    _text("state"),
    _maybe_time("cooldown_until"),
    _number("failures"),
    _text("stats"),
    _time("updated_at"),
)

node = Table(
    "node",
    METADATA,
    _id(),
    _text("role"),
    _time("started_at"),
    _time("heartbeat_at"),
    _text("capacity"),
)

meta = Table(
    "meta",
    METADATA,
    Column("name", Text, primary_key=True),
    _text("value"),
)
