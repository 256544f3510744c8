"""Names and values in one word of a command line: text=sentence,label=target."""


def parse_key_values(text: str) -> dict[str, str]:
    """Read NAME=VALUE,NAME=VALUE; an equals sign in a value is part of it.

    Raises:
        ValueError: for a pair without both sides, and for a name that stands twice.
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    for name, _, value in pairs:
        if not name.strip() or not value.strip():
            raise ValueError(f"{text!r} is not of the form NAME=VALUE,NAME=VALUE")
    names = [name.strip() for name, _, _ in pairs]
    again = [name for name in names if names.count(name) > 1]
    if again:
        raise ValueError(f"{again[0]!r} stands twice in {text!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}
