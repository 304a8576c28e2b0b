"""How Alembic reaches the database: `Config.attributes["url"]` says where it is."""

from alembic import context
from sqlalchemy import create_engine, pool

from fluxserve.storage.tables import METADATA

engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
