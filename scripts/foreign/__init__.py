"""Readers of others, for scripts/foreign_readers.py."""
