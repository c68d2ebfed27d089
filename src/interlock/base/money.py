"""Money: one integer type, nano-USD (1e-9 USD).

A single token of a cheap model costs 20 nano-USD, so micro-USD would misprice short calls, and floats cannot be added
exactly. Sums of integers are exact in any order and grouping: the amounts of a run's calls in the journal add up exactly
to those of the run's row, the audit log and the reservations.

Rounding happens in one place and once per call of a provider: `rounded` turns the exact decimal price of that call into
nano-USD, half up. Nothing is rounded after that.

Shapes: an `int` in Python, `bigint` in SQL (columns `nano_usd`), a decimal string of USD (`"0.000123"`) at the API, in the
command line and in the audit log, a decimal number or string of USD in definitions.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Annotated, NewType

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

NanoUsd = NewType("NanoUsd", int)
"""An amount of money, in 1e-9 USD."""

FREE = NanoUsd(0)
NANO_PER_USD = 10**9
MAX_USD = 1_000_000
"""The largest limit of a definition, USD. Up to this amount a float still distinguishes adjacent nano-USD, as does the
text from which it is read; and no sum of limits comes near the maximum of a `bigint`."""

_DECIMALS = 9
# Sufficient for a price of 20 digits times a billion tokens; the default of 28 digits would round before `rounded`.
_EXACT = Context(prec=60)


def rounded(usd: Decimal) -> NanoUsd:
    """The price of one call, given exactly in USD, as nano-USD: rounded half up."""
    nano = _EXACT.multiply(usd, Decimal(NANO_PER_USD))
    return NanoUsd(int(nano.quantize(Decimal(1), rounding=ROUND_HALF_UP, context=_EXACT)))


def usd_text(amount: NanoUsd) -> str:
    """The amount in USD: an exact decimal without exponent or trailing zeros, such as "0.000123", "2" or "0"."""
    whole, rest = divmod(abs(amount), NANO_PER_USD)
    digits = f"{whole}.{rest:0{_DECIMALS}d}".rstrip("0").rstrip(".")
    return f"-{digits}" if amount < 0 else digits


def read_usd(value: object) -> NanoUsd:
    """An amount as a definition writes it: 0.5, 2 or "0.000123", in USD; read as a decimal, never as a binary fraction.

    Raises:
        ValueError: not a decimal number, not above 0, above `MAX_USD`, or with more than 9 decimals.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError('is an amount in USD; write a decimal number such as 0.5 or "0.5"')
    try:
        # The shortest text of a float is the decimal from which it was read, for all amounts up to MAX_USD.
        usd = Decimal(value if isinstance(value, int) else str(value).strip())
    except InvalidOperation:
        raise ValueError('is an amount in USD; write a decimal number such as 0.5 or "0.5"') from None
    if not usd.is_finite() or not 0 < usd <= MAX_USD:
        raise ValueError(f"must be more than 0 and at most {MAX_USD} USD; write another amount")
    nano = int(usd.scaleb(_DECIMALS, _EXACT))
    if Decimal(nano).scaleb(-_DECIMALS, _EXACT) != usd:
        raise ValueError(f"has more than {_DECIMALS} decimals; the smallest amount is 0.000000001 USD")
    return NanoUsd(nano)


UsdLimit = Annotated[
    NanoUsd,
    BeforeValidator(read_usd),
    PlainSerializer(usd_text, return_type=str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_USD},
                {"type": "string", "pattern": r"^[0-9]{1,7}(\.[0-9]{1,9})?$"},
            ]
        }
    ),
]
"""A limit in a definition: read by `read_usd`, nano-USD in Python, a decimal string where the definition is stored."""
