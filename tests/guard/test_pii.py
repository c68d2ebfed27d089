"""Finding, redacting and revealing. Numbers here are published examples, or made to fit their checksum by the test itself."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.guard.pii import Finding, Redactor, find, reveal, strings


def kinds(text: str) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in find(text)]


def luhn_digit(number: str) -> str:
    """The check digit, by the book: double every second one from the right, and add the digits of that."""
    total = sum(sum(map(int, str(int(digit) * (2 - place % 2)))) for place, digit in enumerate(reversed(number)))
    return str(-total % 10)


def iban(country: str, account: str) -> str:
    """Check digits by ISO 13616: so that the whole leaves 1 when divided by 97."""
    text = "".join(str(int(character, 36)) for character in f"{account}{country}00")
    return f"{country}{98 - int(text) % 97:02}{account}"


FOUND = [
    ("email", "ada@example.com"),
    ("email", "ada.love-lace+tag%x@mail.example.co.uk"),
    ("card", "4111111111111111"),  # the networks' own test numbers
    ("card", "5555-5555-5555-4444"),
    ("card", "3782 822463 10005"),
    ("card", "6011000990139424"),
    ("card", "4222222222222"),
    ("iban", "DE89370400440532013000"),  # the registry's own examples
    ("iban", "GB29 NWBK 6016 1331 9268 19"),
    ("iban", "NO93 8601 1117 947"),
    ("iban", "MT84MALT011000012345MTLCAST001S"),
    ("ssn", "123-45-6789"),
    ("ip", "8.8.8.8"),
    ("ip", "203.113.0.9"),
    ("phone", "+14155552671"),
    ("phone", "+44 20 7946 0958"),
    ("phone", "+41 (0)71 526 99 04"),
    ("phone", "+447700 208 815"),
    ("phone", "(555) 123-4567"),
    ("phone", "(602)272-9781"),
    ("phone", "+1 (555) 123-4567"),
    ("phone", "555-123-4567"),
    ("phone", "345-899-3560x4587"),
    ("phone", "0341 8387176"),
    ("api_key", "sk-proj_abcdefghijklmnop"),
    ("api_key", "AKIAIOSFODNN7EXAMPLE"),
    ("api_key", "ghp_" + "a1B2" * 9),
    ("api_key", "xoxb-123456789012-abcdef"),
    ("api_key", "il_0123456789abcdef_" + "0123456789" * 4),
]


@pytest.mark.parametrize(("kind", "value"), FOUND)
@pytest.mark.parametrize("sentence", ["{}", "It is {}, I think.", "({})", "a:\n{}\nb", '{{"x": "{}"}}'])
def test_personal_data_and_secrets_are_found_whole(kind: str, value: str, sentence: str) -> None:
    assert kinds(sentence.format(value)) == [(kind, value)]


NOT_FOUND = [
    "4111111111111112",  # the checksum does not fit
    "DE88370400440532013000",
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "255.255.255.255",
    "192.0.2.1", "192.168.100.200", "256.1.1.1", "1.2.3",
    "ada@localhost", "@example.com", "ada@", "a@b",
    "sk-short", "AKIA123", "il_short_secret",
    "order 12345", "2024", "1,234,567.89", "100 200", "10-20", "version 1.10.2", "12:30:45", "room 101-102",
    "It costs 25 dollars for 3 to 4 days.", "I have 2 cards and 1 account.", "",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_alike_is_left_alone(text: str) -> None:
    assert kinds(text) == []
    assert kinds(f"See {text} please.") == []


@pytest.mark.parametrize("text", ["000-45-6789", "666-45-6789", "912-45-6789", "123-00-6789", "123-45-0000"])
def test_a_number_that_was_never_given_out_is_no_ssn(text: str) -> None:
    assert "ssn" not in dict(kinds(text))


@pytest.mark.parametrize("text", ["08.08.08.08", "03.93.92.16", "\u0661.\u0661.\u0661.\u0661"])
def test_what_is_nearly_an_address_breaks_nothing(text: str) -> None:
    assert "ip" not in dict(kinds(text))


NEIGHBOURS = [
    ("4111 1111 1111 1111 12/27", "4111 1111 1111 1111"),
    ("4111 1111 1111 1111 123", "4111 1111 1111 1111"),
    ("12 4111 1111 1111 1111", "4111 1111 1111 1111"),
    ("4111111111111111 2027", "4111111111111111"),
    ("7 4111-1111-1111-1111 12 27 123", "4111-1111-1111-1111"),
    ("AT61 1904 3002 3457 3201 EUR", "AT61 1904 3002 3457 3201"),
    ("ES91 2100 0418 4502 0005 1332 BBVA", "ES91 2100 0418 4502 0005 1332"),
]


@pytest.mark.parametrize(("text", "value"), NEIGHBOURS)
def test_a_number_beside_it_does_not_hide_a_card_or_an_account(text: str, value: str) -> None:
    assert value in [found for _, found in kinds(text)]
    assert value not in Redactor.new().redact(text)


def test_two_cards_side_by_side_are_two() -> None:
    assert kinds("4111 1111 1111 1111 5555 5555 5555 4444") == [
        ("card", "4111 1111 1111 1111"),
        ("card", "5555 5555 5555 4444"),
    ]


@given(st.text("0123456789", min_size=12, max_size=18), st.sampled_from(["", " ", "-"]))
def test_the_luhn_digit_decides(body: str, separator: str) -> None:
    good = body + luhn_digit(body)
    bad = body + str((int(good[-1]) + 1) % 10)
    spell = lambda number: separator.join(number[at : at + 4] for at in range(0, len(number), 4))  # noqa: E731
    assert ("card", spell(good)) in kinds(spell(good))
    assert ("card", spell(bad)) not in kinds(spell(bad))


@given(
    st.sampled_from(["DE", "GB", "FR", "MT"]), st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=11, max_size=30)
)
def test_the_remainder_by_97_decides(country: str, account: str) -> None:
    good = iban(country, account)
    bad = good[:3] + str((int(good[3]) + 1) % 10) + good[4:]
    assert ("iban", good) in kinds(good)
    assert ("iban", bad) not in kinds(bad)


def test_where_findings_overlap_the_more_certain_one_wins() -> None:
    assert kinds("DE89 3704 0044 0532 0130 00") == [("iban", "DE89 3704 0044 0532 0130 00")]  # not a card, not a phone
    assert kinds("mail 555-123-4567@example.com") == [("email", "555-123-4567@example.com")]
    assert kinds("sk-4111111111111111-aaaa") == [("api_key", "sk-4111111111111111-aaaa")]
    assert kinds("123-45-6789") == [("ssn", "123-45-6789")]  # not a phone


PIECES = st.one_of(
    st.sampled_from([value for _, value in FOUND]),
    st.sampled_from([" ", ", ", "\n", "x", "1", "-", "@", ".", "(", "+", "email_", "card_0123456789"]),
    st.text(max_size=6),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)
VALUES = st.recursive(
    TEXTS | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(TEXTS)
def test_findings_are_in_order_apart_and_not_empty(text: str) -> None:
    found = find(text)
    ends = [0, *(one.end for one in found)]
    for one, before in zip(found, ends, strict=False):
        assert before <= one.start < one.end <= len(text)
    assert all(isinstance(one, Finding) for one in found)


@settings(max_examples=300)
@given(VALUES)
def test_revealing_undoes_redacting(value: Any) -> None:
    redactor = Redactor.new()
    redacted = redactor.redact(value)
    assert reveal(redacted, redactor.vault) == value
    assert redactor.redact(value) == redacted  # one value, one token


@given(st.lists(st.sampled_from([value for _, value in FOUND]), min_size=1, max_size=6))
def test_nothing_is_left_of_what_was_hidden(values: list[str]) -> None:
    redactor = Redactor.new()
    redacted = redactor.redact({"lines": [" and ".join(values), values]})
    assert not [value for value in values if value in json.dumps(redacted)]
    assert set(redactor.vault.values()) == set(values)
    assert sum(redactor.counts.values()) == 2 * len(values)


def test_one_value_has_one_token_within_a_redactor_and_another_in_the_next() -> None:
    text = "ada@example.com and ada@example.com, not eve@example.com"
    redactor = Redactor.new()
    first, second, third = re.findall(r"email_[0-9a-z]{10}", redactor.redact(text))
    assert first == second != third
    assert redactor.counts == {"email": 3}
    assert redactor.redact({"x": ["ada@example.com"]}) == {"x": [first]}
    assert Redactor.new().redact("ada@example.com") != first
    again = Redactor(dict(redactor.vault), {})  # a redactor that goes on with an earlier vault
    assert again.redact("ada@example.com") == first


def test_a_token_tells_nothing_of_its_value() -> None:
    tokens = {Redactor.new().redact("123-45-6789") for _ in range(200)}
    assert len(tokens) == 200  # not derived from it, so that nobody can try all the numbers
    assert all(re.fullmatch(r"ssn_[0-9a-hjkmnp-tv-z]{10}", token) for token in tokens)


def test_what_is_no_text_stays_and_keys_stay() -> None:
    value = {"ada@example.com": [1, 2.5, None, True, "eve@example.com"], "n": 4111111111111111}
    redacted = Redactor.new().redact(value)
    assert list(redacted) == ["ada@example.com", "n"]
    assert redacted["n"] == 4111111111111111
    assert redacted["ada@example.com"][:4] == [1, 2.5, None, True]
    assert redacted["ada@example.com"][4].startswith("email_")


def test_revealing_replaces_known_tokens_only_and_once() -> None:
    vault = {"email_aaaaaaaaaa": "phone_bbbbbbbbbb", "phone_bbbbbbbbbb": "secret"}
    assert reveal("email_aaaaaaaaaa", vault) == "phone_bbbbbbbbbb"  # what it stands for is not looked at again
    assert reveal(["to_email_aaaaaaaaaa.", "email_cccccccccc"], vault) == ["to_phone_bbbbbbbbbb.", "email_cccccccccc"]
    assert reveal({"a": "phone_bbbbbbbbbb"}, {}) == {"a": "phone_bbbbbbbbbb"}


def test_strings_of_a_value_are_all_there_with_its_keys() -> None:
    value = {"a": ["b", {"c": "d"}], "e": 1, "f": None}
    assert sorted(strings(value)) == ["a", "b", "c", "d", "e", "f"]
    assert json.dumps(value)
