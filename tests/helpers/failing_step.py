"""A step's work that fails as nobody foresaw."""

from infra.step import about


def fails_at(sample: str) -> None:
    """Fails at a sample."""
    with about(sample):
        raise ZeroDivisionError("division by zero")
