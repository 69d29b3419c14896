"""Short documents as people type them by hand: one line or a few, in any order, often without some of the fields.

`layouts.py` lays out whole documents; a note says the same things in a few words ("Invoice from ACME Ltd. Date: 3 March
2026. Total: EUR 12.50"). A field in `missing` does not occur in the text.
"""

from __future__ import annotations

import random
from datetime import date

from bros_batch.demo import vocabulary
from bros_batch.demo.layouts import Sheet

_JOINERS = (". ", ". ", ". ", ", ", ", ", "; ", "\n", "\n", "\n", " | ", " ", " - ")
_CURRENCY_WORDS = {"EUR": "euros", "USD": "dollars", "GBP": "pounds", "JPY": "yen"}


def lay_out_note(rng: random.Random, sheet: Sheet, missing: frozenset[str], has_title: bool) -> str:
    """Lay out the content of a document as a note. Without a title, the note does not say what it is."""
    if sheet.language == "en" and has_title is False and "vendor" not in missing and rng.random() < 0.6:
        return _sentence(rng, sheet, missing)
    if sheet.language == "en" and rng.random() < 0.7:
        return _phrases(rng, sheet, missing, has_title)
    return _labeled(rng, sheet, missing, has_title)


def _sentence(rng: random.Random, sheet: Sheet, missing: frozenset[str]) -> str:
    """Return a sentence about a purchase: "We paid 12.50 EUR to ACME Ltd on 3 March 2026."."""
    amount = "" if "total" in missing else _amount(rng, sheet, missing)
    if amount and rng.random() < 0.6:
        text = rng.choice(
            (
                f"We paid {amount} to {sheet.vendor}",
                f"I paid {amount} to {sheet.vendor}",
                f"{sheet.vendor} charged us {amount}",
                f"{sheet.vendor} charged me {amount}",
                f"Paid {amount} to {sheet.vendor}",
                f"{amount} to {sheet.vendor}",
            )
        )
        amount = ""
    else:
        things = " and ".join(f"{quantity} {name.lower()}" for name, quantity, _ in sheet.lines[:2])
        text = rng.choice(
            (
                f"We bought {things} from {sheet.vendor}",
                f"I bought {things} from {sheet.vendor}",
                f"{sheet.vendor} sold us {things}",
                f"Bought from {sheet.vendor}",
            )
        )
    endings = [] if "date" in missing else [f" on {_date(rng, sheet.issued, sheet.language)}"]
    if amount:
        endings.append(f" for {amount}")
    rng.shuffle(endings)
    return text + "".join(endings) + rng.choice((".", ".", ""))


def _phrases(rng: random.Random, sheet: Sheet, missing: frozenset[str], has_title: bool) -> str:
    """Return English phrases, some with a label and some without."""
    title = rng.choice(vocabulary.TITLES["en"][vocabulary.KINDS.index(sheet.kind)])
    title = rng.choice((title, title, title.lower(), title.upper()))
    is_order = sheet.kind == "purchase order"
    if has_title and rng.random() < 0.4:
        title += rng.choice((" ", " no. ", " #")) + sheet.number
    phrases = []
    if "vendor" in missing:
        head = title if has_title else ""
    elif has_title and rng.random() < 0.6:
        head = (
            f"{title} {'to' if is_order else rng.choice(('from', 'from', 'from', 'by', 'of'))} {sheet.vendor}"
        )
    else:
        label = rng.choice(("vendor", "supplier") if is_order else ("vendor", "from", "seller", "supplier"))
        phrases.append(f"{label}{rng.choice((': ', ': ', ' '))}{sheet.vendor}")
        head = title if has_title else ""
    if "date" not in missing:
        day = _date(rng, sheet.issued, sheet.language)
        phrases.append(
            rng.choice(("date: {0}", "date: {0}", "dated {0}", "issued on {0}", "date {0}")).format(day)
        )
    if "total" not in missing:
        amount = _amount(rng, sheet, missing)
        phrases.append(
            rng.choice(
                (
                    "total: {0}",
                    "total: {0}",
                    "total {0}",
                    "amount due: {0}",
                    "total amount: {0}",
                    "amount: {0}",
                )
            ).format(amount)
        )
    phrases += _extras(rng, sheet, missing)
    if rng.random() < 0.5:
        rng.shuffle(phrases)
    joiner = rng.choice(_JOINERS)
    if joiner in (". ", "\n", " | ", " ") and rng.random() < 0.85:
        phrases = [phrase[0].upper() + phrase[1:] for phrase in phrases]
    return joiner.join([head, *phrases] if head else phrases) + (
        "." if joiner == ". " and rng.random() < 0.4 else ""
    )


def _labeled(rng: random.Random, sheet: Sheet, missing: frozenset[str], has_title: bool) -> str:
    """Return labels with values in the document's language."""
    labels = vocabulary.LABELS[sheet.language]
    order_labels = vocabulary.ORDER_VENDOR_LABELS[sheet.language]
    vendor_labels = order_labels if sheet.kind == "purchase order" else labels["vendor"]
    rows = []
    if "vendor" not in missing:
        rows.append((rng.choice(vendor_labels), sheet.vendor))
    if "date" not in missing:
        rows.append((rng.choice(labels["date"]), _date(rng, sheet.issued, sheet.language)))
    if "total" not in missing:
        rows.append((rng.choice(labels["total"]), _amount(rng, sheet, missing)))
    if sheet.kind != "receipt" and rng.random() < 0.2:
        rows.append((rng.choice(labels["due"]), _date(rng, sheet.due, sheet.language)))
    if rng.random() < 0.2:
        rows.append((rng.choice(labels["customer"]), sheet.customer))
    if rng.random() < 0.5:
        rng.shuffle(rows)
    shape = rng.choice(("{0}: {1}", "{0}: {1}", "{0}: {1}", "{0} {1}", "{0} = {1}", "{0}:{1}"))
    title = rng.choice(vocabulary.TITLES[sheet.language][vocabulary.KINDS.index(sheet.kind)])
    parts = [shape.format(*row) for row in rows]
    return rng.choice(_JOINERS).join([title, *parts] if has_title else parts)


def _extras(rng: random.Random, sheet: Sheet, missing: frozenset[str]) -> list[str]:
    """Return phrases that are true but not asked for."""
    extras = []
    if rng.random() < 0.12:
        extras.append(f"{rng.choice(('bill to', 'customer', 'sold to'))}: {sheet.customer}")
    if sheet.kind != "receipt" and rng.random() < 0.12:
        extras.append(f"{rng.choice(('due date', 'payable by', 'due by'))}: {_date(rng, sheet.due, 'en')}")
    if rng.random() < 0.12:
        extras += [f"{quantity} x {name}" for name, quantity, _ in sheet.lines[:2]]
    if "total" not in missing and rng.random() < 0.1:
        extras.append(f"{rng.choice(('VAT', 'tax'))}: {_number(rng, sheet.tax, sheet)}")
    return extras


def _date(rng: random.Random, day: date, language: str) -> str:
    month = vocabulary.MONTHS[language][day.month - 1]
    separator = vocabulary.DATE_SEPARATORS[language]
    forms = [
        day.isoformat(),
        f"{day.day:02d}{separator}{day.month:02d}{separator}{day.year}",
        f"{day.day}{separator}{day.month}{separator}{day.year}",
    ]
    if language == "de":
        forms += [f"{day.day}. {month} {day.year}"] * 3
    elif language == "es":
        forms += [f"{day.day} de {month} de {day.year}"] * 3
    else:
        forms += [f"{day.day} {month} {day.year}"] * 3
    if language == "en":
        ending = "th" if 10 < day.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
        forms += [f"{month} {day.day}, {day.year}"] * 3
        forms += [
            f"{month[:3]} {day.day}, {day.year}",
            f"{day.day} {month[:3]} {day.year}",
            f"{month} {day.day}{ending}, {day.year}",
            f"{month} {day.day} {day.year}",
        ]
    return rng.choice(forms)


def _number(rng: random.Random, amount: int, sheet: Sheet) -> str:
    is_english = sheet.language == "en"
    thousands, decimal = (",", ".") if is_english else (".", ",")
    if rng.random() < 0.5:
        thousands = ""
    whole, fraction = (amount, 0) if sheet.currency == "JPY" else divmod(amount, 100)
    digits = f"{whole:,}".replace(",", thousands)
    if sheet.currency == "JPY" or (fraction == 0 and rng.random() < 0.7):
        return digits
    return f"{digits}{decimal}{fraction:02d}"


def _amount(rng: random.Random, sheet: Sheet, missing: frozenset[str]) -> str:
    number = _number(rng, sheet.total, sheet)
    if "currency" in missing:
        return number
    symbol = vocabulary.CURRENCIES[sheet.currency]
    forms = [f"{number} {sheet.currency}", f"{sheet.currency} {number}"]
    if symbol:
        forms += [f"{symbol}{number}" if symbol in "€$£¥" else f"{symbol} {number}", f"{number} {symbol}"]
    if sheet.language == "en" and sheet.currency in _CURRENCY_WORDS and rng.random() < 0.3:
        forms = [f"{number} {_CURRENCY_WORDS[sheet.currency]}"]
    return rng.choice(forms)
