"""Plain, typed functions in nine packages; each imports itself and the packages before it, none imports Prefect."""
