"""How Alembic reaches the database: `Config.attributes["url"]` says where it is.

Offline, the attribute is the name of a dialect and the migrations become SQL text.
"""

from alembic import context
from sqlalchemy import create_engine, pool

from fluxserve.storage.tables import METADATA

url = context.config.attributes["url"]
if context.is_offline_mode():
    context.configure(dialect_name=url, target_metadata=METADATA, literal_binds=True)
    # The transaction is the caller's, which also holds the lock.
    context.run_migrations()
else:
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()
