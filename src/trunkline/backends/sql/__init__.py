"""SQL databases through SQLAlchemy Core: opened by URL, one schema for SQLite and PostgreSQL."""

from trunkline.backends.sql.adapter import AdvisoryLocks, SQLAdapter
from trunkline.backends.sql.database import Database, Migration, Result, database_at

__all__ = ("AdvisoryLocks", "Database", "Migration", "Result", "SQLAdapter", "database_at")
