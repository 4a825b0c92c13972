"""Devices and processes: which device carries which blocks, and what they agree on."""
