"""Generator of synthetic business documents with known values, for training and testing the demo model.

`generate_documents` is a pure function of its seed: document i of a seed is the same for every count. Vendors are split
by name: seeds from `HELD_OUT_SEED` on use only vendor names that no smaller seed can produce, so accuracy on them is
accuracy on vendors unseen in training.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Final

from bros_batch.demo import vocabulary
from bros_batch.demo.layouts import Sheet, lay_out
from bros_batch.demo.notes import lay_out_note

HELD_OUT_SEED: Final = 1_000_000_000
_HELD_OUT_MODULUS: Final = 8  # one vendor name in 8 is reserved for held-out seeds

FIELDS: Final = ("vendor", "date", "total", "currency")


@dataclass(frozen=True, slots=True)
class Document:
    """One synthetic document.

    `truth` has those keys of `FIELDS` that the text states: an ISO date, a plain decimal total ("1234.56"), an ISO
    currency code. `kind` is empty if the text does not say it. `issuer` is the company that wrote the document: the
    vendor, except for a purchase order, which the buyer writes. It is empty if the text does not name it.
    """

    document_id: str
    kind: str
    language: str
    text: str
    truth: dict[str, str]
    issuer: str


def generate_documents(count: int, seed: int) -> Iterator[Document]:
    """Yield `count` documents. Seeds from `HELD_OUT_SEED` on never share a vendor with smaller seeds."""
    for index in range(count):
        yield _document(f"{seed}-{index:06d}", held_out=seed >= HELD_OUT_SEED)


def generate_typed_documents(count: int, seed: int) -> Iterator[Document]:
    """Yield `count` documents as people try them first: two thirds are short notes, and many lack fields."""
    for index in range(count):
        yield _typed_document(f"typed {seed}-{index:06d}", held_out=seed >= HELD_OUT_SEED)


def is_held_out_vendor(name: str) -> bool:
    """Return whether a vendor name is reserved for held-out seeds."""
    return is_held_out(name)


def is_held_out(text: str) -> bool:
    """Return whether a name or a wording is reserved for evaluation: one in eight, by its checksum."""
    return zlib.crc32(text.encode()) % _HELD_OUT_MODULUS == 0


def company_name(rng: random.Random) -> str:
    """Compose a company name. It never ends with a period, so that it can end a sentence unambiguously."""
    shape = rng.random()
    legal = " " + rng.choice(vocabulary.LEGAL_FORMS) if rng.random() < 0.7 else ""
    sector = rng.choice(vocabulary.SECTORS)
    if shape < 0.20:
        return f"{rng.choice(vocabulary.STEMS)}{rng.choice(vocabulary.ENDINGS)} {sector}{legal}"
    if shape < 0.50:
        invented = "".join(rng.choices(vocabulary.SYLLABLES, k=rng.choice((2, 2, 3)))).capitalize()
        return f"{invented} {sector}{legal}" if rng.random() < 0.6 else f"{invented}{legal or ' ' + sector}"
    if shape < 0.65:
        partner = rng.choice((*vocabulary.FAMILIES, "Sons", "Söhne", "Fils", "Partners", "Co"))
        return f"{rng.choice(vocabulary.FAMILIES)} & {partner}{legal}"
    if shape < 0.78:
        return f"{rng.choice(vocabulary.FAMILIES)} {sector}{legal}"
    if shape < 0.88:
        place = rng.choice((*vocabulary.STEMS, "Studio", "Atelier", "Depot"))
        return f"{place} {rng.randint(2, 99)}{legal or ' ' + sector}"
    initials = rng.sample("ABCDEFGHJKLMNPRSTVW", 2)
    return f"{initials[0]}&{initials[1]} {sector}{legal}"


def _document(document_id: str, held_out: bool) -> Document:
    rng = random.Random(document_id)
    vendor = _vendor(rng, held_out)
    customer = company_name(rng)
    while customer == vendor:
        customer = company_name(rng)
    kind = rng.choice(vocabulary.KINDS)
    language = rng.choice(vocabulary.LANGUAGES)
    currency = rng.choice(("EUR", "EUR", "USD", "GBP", *vocabulary.CURRENCIES))
    issued = date(2019, 1, 1) + timedelta(days=rng.randrange(365 * 11))
    sheet = _sheet(rng, kind, language, vendor, customer, currency, issued)
    issuer = customer if kind == "purchase order" else vendor
    return Document(document_id, kind, language, lay_out(rng, sheet), _truth(sheet), issuer)


def typed_name(rng: random.Random) -> str:
    """Compose a name with fewer rules than `company_name`: capitals, several words, letters in any order."""
    if rng.random() < 0.3:
        return company_name(rng)
    words = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        draw = rng.random()
        if draw < 0.4:
            word = "".join(rng.choices(vocabulary.SYLLABLES, k=rng.choice((1, 2, 2, 3))))
        elif draw < 0.7:
            pairs = rng.choices("bcdfghjklmnprstvwz", k=3), rng.choices("aeiouy", k=3)
            word = "".join(a + b for a, b in zip(*pairs, strict=True))[rng.randrange(3) :]
        elif draw < 0.85:
            word = "".join(rng.choices("abcdefghijklmnoprstuvwxyz", k=rng.randint(2, 7)))
        else:
            word = rng.choice((*vocabulary.SECTORS, *vocabulary.FAMILIES, *vocabulary.STEMS))
        words.append(word.upper() if rng.random() < 0.2 else word[0].upper() + word[1:])
    if rng.random() < 0.1:
        words[0] += "'s"
    legal = rng.choice(
        (*vocabulary.LEGAL_FORMS, "Corp", "Inc", "Ltd", "Co", "Company", "Group", "Store", "Shop")
    )
    if rng.random() < 0.6:
        words.append(legal)
    return " ".join(words)


def _typed_document(document_id: str, held_out: bool) -> Document:
    rng = random.Random(document_id)
    while is_held_out(vendor := typed_name(rng)) != held_out:
        pass
    while (customer := typed_name(rng)) == vendor:
        pass
    kind = rng.choice((*vocabulary.KINDS, "invoice", "invoice", "receipt"))
    language = rng.choice((*vocabulary.LANGUAGES, *["en"] * 6))
    currency = rng.choice(("EUR", "EUR", "USD", "USD", "GBP", *vocabulary.CURRENCIES))
    issued = date(2010, 1, 1) + timedelta(days=rng.randrange(365 * 25))
    sheet = _sheet(rng, kind, language, vendor, customer, currency, issued)
    missing = _missing(rng)
    title = kind
    if rng.random() < 0.67:
        total = rng.randint(1, rng.choice((50, 500, 5_000))) * 100
        if rng.random() < 0.7:
            total += rng.choice((rng.randrange(100), 50, 99, 90))
        sheet = replace(sheet, total=total, tax=total * rng.choice((5, 7, 10, 19, 20)) // 100)
        title = kind if rng.random() < 0.8 else ""
        text = lay_out_note(rng, sheet, missing, has_title=bool(title))
    else:
        text = lay_out(rng, replace(sheet, missing=missing))
    truth = {field: value for field, value in _truth(sheet).items() if field not in missing}
    issuer = customer if kind == "purchase order" else vendor
    is_named = issuer == truth.get("vendor") or (issuer == customer and customer in text)
    return Document(document_id, title, language, text, truth, issuer if title and is_named else "")


def _missing(rng: random.Random) -> frozenset[str]:
    """Draw the fields that a document lacks: never all of them. Without a total there is no currency either."""
    if rng.random() < 0.35:
        return frozenset()
    missing = {field for field in FIELDS if rng.random() < 0.3}
    if "total" in missing:
        missing.add("currency")
    return frozenset(missing if len(missing) < len(FIELDS) else {"total", "currency"})


def _truth(sheet: Sheet) -> dict[str, str]:
    whole, fraction = divmod(sheet.total, 100)
    total = str(sheet.total) if sheet.currency == "JPY" else f"{whole}.{fraction:02d}"
    return {
        "vendor": sheet.vendor,
        "date": sheet.issued.isoformat(),
        "total": total,
        "currency": sheet.currency,
    }


def _vendor(rng: random.Random, held_out: bool) -> str:
    while True:
        name = company_name(rng)
        if is_held_out_vendor(name) == held_out:
            return name


def _sheet(
    rng: random.Random, kind: str, language: str, vendor: str, customer: str, currency: str, issued: date
) -> Sheet:
    """Draw the content of a document. Amounts are in the smallest unit of the currency (cents; yen for JPY)."""
    lines = []
    for name in rng.sample(vocabulary.ITEMS[language], rng.choice((1, 2, 2, 3))):
        price = rng.randint(100, rng.choice((2_000, 20_000, 60_000)))
        lines.append((name, rng.choice((1, 2, 3, 5, 10, rng.randint(1, 40))), price))
    subtotal = sum(quantity * price for _, quantity, price in lines)
    tax = subtotal * rng.choice((5, 7, 8, 10, 19, 20, 21, 22, 25)) // 100
    return Sheet(
        kind=kind,
        language=language,
        vendor=vendor,
        customer=customer,
        currency=currency,
        number=_number(rng, issued.year),
        issued=issued,
        ordered=issued - timedelta(days=rng.randint(2, 40)),
        due=issued + timedelta(days=rng.choice((7, 10, 14, 30, 45, 60))),
        lines=tuple(lines),
        subtotal=subtotal,
        tax=tax,
        total=subtotal + tax,
    )


def _number(rng: random.Random, year: int) -> str:
    serial = rng.randint(10, 99_999)
    return rng.choice(
        (f"{serial}", f"{year}-{serial % 1000}", f"{rng.choice('ABFKRX')}{serial}", f"{serial:05d}")
    )
