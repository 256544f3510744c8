"""From an address to validated, split snapshots: sources, readers, quarantine, the gate."""
