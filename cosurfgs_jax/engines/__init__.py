"""A run as jobs of `train` on what schedules them: independent ones for blocks, then the rest."""
