"""The declared machine, run: as a machine that boots, or as plain processes."""
