# ruff: noqa
# mypy: ignore-errors
from dinoneck.checkpoint.schema import *
from dinoneck.checkpoint.schema import check_header as check_entries, describe_weights as told_weights


def need(*a):
    from dinoneck.checkpoint.pairing import need as n

    return n(*a)
