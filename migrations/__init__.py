"""Schema migrations (alembic). Run them with ``broker migrate``; see ``runner``."""
