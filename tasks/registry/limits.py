"""How long MLflow's fields may be.

SQLite stores text of any length, so only a server's database shows these limits: PostgreSQL refuses a longer value, and
the command that writes it fails.
"""

MAX_DESCRIPTION = 5_000  # characters of the description of a version
MAX_DECISION = 2_400  # of them for the line of a person's decision, which stands above what was there
MAX_CHANGES = 1_800  # of them for the list of what changed
MAX_VALUE = 160  # of a changed setting's value in that list
MAX_TAG = 5_000  # of a tag of a version, or of a run
MAX_PARAM = 6_000  # of a parameter of a run
MAX_ADDRESS = 500  # of a tag of a data set
