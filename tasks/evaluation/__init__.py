"""Evidence and verdict: metrics, paired tests, the judge."""
