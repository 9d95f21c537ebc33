"""The parts of a migration: its journal, what it reports, and its rollback."""
