"""Plain, typed functions, one concern a file; none of them imports Prefect."""
