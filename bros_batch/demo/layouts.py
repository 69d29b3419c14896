"""Layouts of synthetic documents: order of sections, key-value lines, tables or prose, date and number formats.

The style is drawn once per document (`_Style`), so a document never mixes two date or number formats.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import date

from bros_batch.demo import vocabulary


@dataclass(frozen=True, slots=True)
class Sheet:
    """The content of a document before layout. Amounts are in the smallest unit (cents; yen for JPY)."""

    kind: str
    language: str
    vendor: str
    customer: str
    currency: str
    number: str
    issued: date
    ordered: date
    due: date
    lines: tuple[tuple[str, int, int], ...]  # (item name, quantity, unit price)
    subtotal: int
    tax: int
    total: int
    missing: frozenset[str] = frozenset()  # the fields that the text must not state


@dataclass(frozen=True, slots=True)
class _Style:
    date_format: str
    thousands: str
    decimal: str
    # "prefix" and "suffix" write `mark` at every amount of the totals, "line" and "label" write it once, and "nowhere"
    # never.
    currency_place: str
    mark: str
    key_value: str


def lay_out(rng: random.Random, sheet: Sheet) -> str:
    """Lay out the content of a document as text."""
    style = _draw_style(rng, sheet)
    if "currency" in sheet.missing:
        style = replace(style, currency_place="nowhere")
    if rng.random() < 0.15 and not sheet.missing:  # prose has no parts that can be left out
        return _prose(rng, sheet, style)
    return _sections(rng, sheet, style)


def _draw_style(rng: random.Random, sheet: Sheet) -> _Style:
    language = sheet.language
    if language == "en":
        thousands, decimal = rng.choice(((",", "."), (",", "."), ("", "."), (" ", ".")))
    elif language == "fr":
        thousands, decimal = rng.choice(((" ", ","), (" ", ","), ("", ",")))
    elif sheet.currency == "CHF":
        thousands, decimal = "'", "."
    else:
        thousands, decimal = rng.choice(((".", ","), (".", ","), ("", ",")))
    symbol = vocabulary.CURRENCIES[sheet.currency]
    return _Style(
        date_format=rng.choice(
            ("iso", "numeric", "numeric", "long", "long", "us" if language == "en" else "long")
        ),
        thousands=thousands,
        decimal=decimal,
        currency_place=rng.choice(("prefix", "prefix", "suffix", "suffix", "line", "label")),
        mark=symbol if symbol and rng.random() < 0.6 else sheet.currency,
        key_value=rng.choice(
            ("{0}: {1}", "{0}: {1}", "{0}: {1}", "{0} : {1}", "{0} | {1}", "{0:<16} {1}", "{0} .... {1}")
        ),
    )


def _date(day: date, sheet: Sheet, style: _Style) -> str:
    month_name = vocabulary.MONTHS[sheet.language][day.month - 1]
    if style.date_format == "iso":
        return day.isoformat()
    if style.date_format == "numeric":
        separator = vocabulary.DATE_SEPARATORS[sheet.language]
        return f"{day.day:02d}{separator}{day.month:02d}{separator}{day.year}"
    if style.date_format == "us":
        return f"{month_name} {day.day}, {day.year}"
    if sheet.language == "de":
        return f"{day.day}. {month_name} {day.year}"
    if sheet.language == "es":
        return f"{day.day} de {month_name} de {day.year}"
    return f"{day.day} {month_name} {day.year}"


def _bare(amount: int, sheet: Sheet, style: _Style) -> str:
    whole, fraction = (
        (amount, "") if sheet.currency == "JPY" else (amount // 100, f"{style.decimal}{amount % 100:02d}")
    )
    return f"{whole:,}".replace(",", style.thousands) + fraction


def _amount(amount: int, sheet: Sheet, style: _Style) -> str:
    bare = _bare(amount, sheet, style)
    if style.currency_place == "prefix":
        # "$12.00", but "USD 12.00"
        return f"{style.mark}{bare}" if style.mark in "€$£¥" else f"{style.mark} {bare}"
    if style.currency_place == "suffix":
        return f"{bare} {style.mark}"
    return bare


def _prose(rng: random.Random, sheet: Sheet, style: _Style) -> str:
    if style.currency_place in ("line", "label"):  # prose has no place to name the currency once
        style = replace(style, currency_place="suffix")
    sale, order = vocabulary.PROSE[sheet.language]
    items = ", ".join(f"{quantity} x {name}" for name, quantity, _ in sheet.lines)
    return rng.choice(order if sheet.kind == "purchase order" else sale).format(
        title=_title(rng, sheet),
        number=sheet.number,
        date=_date(sheet.issued, sheet, style),
        due=_date(sheet.due, sheet, style),
        vendor=sheet.vendor,
        customer=sheet.customer,
        items=items,
        subtotal=_amount(sheet.subtotal, sheet, style),
        tax=_amount(sheet.tax, sheet, style),
        total=_amount(sheet.total, sheet, style),
    )


def _title(rng: random.Random, sheet: Sheet) -> str:
    return rng.choice(vocabulary.TITLES[sheet.language][vocabulary.KINDS.index(sheet.kind)])


def _sections(rng: random.Random, sheet: Sheet, style: _Style) -> str:
    title = _title(rng, sheet)
    title = title.upper() if rng.random() < 0.3 else title
    if rng.random() < 0.5:
        title = f"{title} {sheet.number}"
        number_shown = True
    else:
        number_shown = False
    head, middle = _parties(rng, sheet, style)
    middle.append(_meta(rng, sheet, style, number_shown))
    rng.shuffle(middle)
    top = [[title], head] if head else [[title]]
    rng.shuffle(top)
    body = [_items(rng, sheet, style), _totals(rng, sheet, style)]
    sections = top + middle + body
    if rng.random() < 0.25:  # dates and parties after the amounts
        sections = top + body + middle
    if rng.random() < 0.3:
        sections.append([_label(rng, sheet, "footer")])
    gap = rng.choice(("\n", "\n", "\n\n", "\n\n", "\n---\n", "\n==========\n"))
    return gap.join("\n".join(section) for section in sections if section)


def _label(rng: random.Random, sheet: Sheet, name: str) -> str:
    return rng.choice(vocabulary.LABELS[sheet.language][name])


def _parties(rng: random.Random, sheet: Sheet, style: _Style) -> tuple[list[str], list[list[str]]]:
    """Return a letterhead, which may be empty, and the labeled sections of vendor and customer.

    A letterhead without a label always names the issuer; the other party then always has a label.
    """
    is_order = sheet.kind == "purchase order"
    vendor_label = (
        rng.choice(vocabulary.ORDER_VENDOR_LABELS[sheet.language])
        if is_order
        else _label(rng, sheet, "vendor")
    )
    vendor_section = _party(rng, sheet, style, vendor_label, sheet.vendor)
    customer_section = _party(rng, sheet, style, _label(rng, sheet, "customer"), sheet.customer)
    if "vendor" in sheet.missing:
        return [], [] if sheet.kind == "receipt" else [customer_section]
    if rng.random() < 0.5:
        return [], [vendor_section, customer_section]
    head = [sheet.customer if is_order else sheet.vendor]
    if rng.random() < 0.5:
        head.append(rng.choice(vocabulary.STREETS[sheet.language]))
    if is_order:
        return head, [vendor_section]
    # A receipt does not name the customer.
    return head, [] if sheet.kind == "receipt" else [customer_section]


def _party(rng: random.Random, sheet: Sheet, style: _Style, label: str, name: str) -> list[str]:
    section = [f"{label}:", name] if rng.random() < 0.25 else [style.key_value.format(label, name)]
    if rng.random() < 0.25:
        section.append(rng.choice(vocabulary.STREETS[sheet.language]))
    return section


def _meta(rng: random.Random, sheet: Sheet, style: _Style, number_shown: bool) -> list[str]:
    rows = [(_label(rng, sheet, "date"), _date(sheet.issued, sheet, style))]
    if "date" in sheet.missing:
        rows = []
    if not number_shown:
        rows.append((_label(rng, sheet, "number"), sheet.number))
    if sheet.kind != "receipt" and rng.random() < 0.6:
        rows.append((_label(rng, sheet, "due"), _date(sheet.due, sheet, style)))
    if sheet.kind in ("invoice", "delivery note") and rng.random() < 0.4:
        rows.append((_label(rng, sheet, "order_date"), _date(sheet.ordered, sheet, style)))
    if style.currency_place == "line":
        rows.append((_label(rng, sheet, "currency"), style.mark))
    rng.shuffle(rows)
    return [style.key_value.format(label, value) for label, value in rows]


def _items(rng: random.Random, sheet: Sheet, style: _Style) -> list[str]:
    shape = rng.choice(
        (
            "{quantity} x {name} {sum}",
            "{name} | {quantity} | {sum}",
            "- {name}: {quantity} x {price}",
            "{name:<12} {sum}",
        )
    )
    return [
        shape.format(
            name=name,
            quantity=quantity,
            price=_bare(price, sheet, style),
            sum=_bare(quantity * price, sheet, style),
        )
        for name, quantity, price in sheet.lines
    ]


def _totals(rng: random.Random, sheet: Sheet, style: _Style) -> list[str]:
    unit = f" ({style.mark})" if style.currency_place == "label" else ""
    net, tax, total = (
        _label(rng, sheet, "subtotal"),
        _label(rng, sheet, "tax"),
        _label(rng, sheet, "total") + unit,
    )
    amounts = [_amount(amount, sheet, style) for amount in (sheet.subtotal, sheet.tax, sheet.total)]
    if "total" in sheet.missing:
        rows = [] if rng.random() < 0.5 else [(net, amounts[0]), (tax, amounts[1])]
        return [style.key_value.format(label, value) for label, value in rows]
    if rng.random() < 0.1:
        return [" | ".join((net, tax, total)), " | ".join(amounts)]
    rows = [(net, amounts[0]), (tax, amounts[1])] if rng.random() < 0.85 else [(tax, amounts[1])]
    rows.insert(rng.choice((0, len(rows), len(rows), len(rows))), (total, amounts[2]))
    if sheet.kind == "receipt" and rng.random() < 0.5:
        unit_size = 1000 if sheet.currency == "JPY" else 5000
        paid = (sheet.total // unit_size + 1) * unit_size
        rows.append((_label(rng, sheet, "paid"), _amount(paid, sheet, style)))
        rows.append((_label(rng, sheet, "change"), _amount(paid - sheet.total, sheet, style)))
    return [style.key_value.format(label, value) for label, value in rows]
