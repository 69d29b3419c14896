"""Generator of synthetic business documents with known values, for training and testing the demo model.

`generate_documents` is a pure function of its seed: document i of a seed is the same for every count. Vendors are split
by name: seeds from `HELD_OUT_SEED` on use only vendor names that no smaller seed can produce, so accuracy on them is
accuracy on vendors unseen in training.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from bros_batch.demo import vocabulary
from bros_batch.demo.layouts import Sheet, lay_out

HELD_OUT_SEED: Final = 1_000_000_000
_HELD_OUT_MODULUS: Final = 8  # one vendor name in 8 is reserved for held-out seeds

FIELDS: Final = ("vendor", "date", "total", "currency")


@dataclass(frozen=True, slots=True)
class Document:
    """One synthetic document.

    `truth` has the keys of `FIELDS`: an ISO date, a plain decimal total ("1234.56"), an ISO currency code. `issuer` is
    the company that wrote the document: the vendor, except for a purchase order, which the buyer writes.
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


def is_held_out_vendor(name: str) -> bool:
    """Return whether a vendor name is reserved for held-out seeds."""
    return zlib.crc32(name.encode()) % _HELD_OUT_MODULUS == 0


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
    total = str(sheet.total) if currency == "JPY" else f"{sheet.total // 100}.{sheet.total % 100:02d}"
    truth = {"vendor": vendor, "date": issued.isoformat(), "total": total, "currency": currency}
    issuer = customer if kind == "purchase order" else vendor
    return Document(document_id, kind, language, lay_out(rng, sheet), truth, issuer)


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
