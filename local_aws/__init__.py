"""AWS on this machine: the emulator, PostgreSQL, and processes for containers."""
