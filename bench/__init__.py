"""Programs that measure; each prints a table and, with --json FILE, writes the same numbers. It knows no test."""
