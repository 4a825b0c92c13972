"""The generated town: a small place whose exact shape is known, seen from a drone."""
