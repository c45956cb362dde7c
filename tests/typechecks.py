"""How annotations are checked while the tests run."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""beartype for which an int is a float, as it is for Python and for type checkers."""
