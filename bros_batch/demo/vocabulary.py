"""Vocabulary of the synthetic documents: labels in six languages, parts of names, currencies, items, addresses.

This module holds only data; `documents.py` and `layouts.py` combine it. No label of a true field (date, total, vendor)
is also the label of a distractor in the same language.
"""

from __future__ import annotations

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LANGUAGES: Final = ("en", "de", "fr", "es", "it", "nl")
KINDS: Final = ("invoice", "purchase order", "delivery note", "receipt")

# By language, then one entry per kind, in the order of KINDS.
TITLES: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "en": (("Invoice", "Tax Invoice"), ("Purchase Order",), ("Delivery Note",), ("Receipt", "Sales Receipt")),
    "de": (("Rechnung",), ("Bestellung",), ("Lieferschein",), ("Quittung", "Kassenbon")),
    "fr": (("Facture",), ("Bon de commande",), ("Bon de livraison",), ("Reçu", "Ticket de caisse")),
    "es": (("Factura",), ("Orden de compra",), ("Albarán", "Nota de entrega"), ("Recibo",)),
    "it": (("Fattura",), ("Ordine di acquisto",), ("Bolla di consegna",), ("Ricevuta", "Scontrino")),
    "nl": (("Factuur",), ("Inkooporder",), ("Pakbon",), ("Kassabon", "Kwitantie")),
}

LABELS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "en": {
        "vendor": ("Vendor", "Seller", "From", "Supplier", "Issued by"),
        "customer": ("Bill to", "Customer", "Sold to", "Buyer", "Client"),
        "date": ("Date", "Date of issue", "Issued on", "Document date"),
        "due": ("Due date", "Payable by", "Due by"),
        "order_date": ("Order date", "Ordered on"),
        "number": ("No.", "Number", "Reference"),
        "subtotal": ("Subtotal", "Net amount", "Net"),
        "tax": ("VAT", "Sales tax", "Tax"),
        "total": ("Total", "Grand total", "Amount due", "Total amount"),
        "paid": ("Cash", "Paid in cash"),
        "change": ("Change",),
        "currency": ("Currency", "All amounts in"),
        "footer": (
            "Thank you for your business.",
            "Goods remain our property until paid.",
            "Questions? Call us.",
        ),
    },
    "de": {
        "vendor": ("Lieferant", "Verkäufer", "Von", "Anbieter", "Rechnungssteller"),
        "customer": ("Kunde", "Käufer", "Rechnung an", "Empfänger"),
        "date": ("Datum", "Ausgestellt am", "Belegdatum"),
        "due": ("Fällig am", "Zahlbar bis"),
        "order_date": ("Bestelldatum", "Bestellt am"),
        "number": ("Nr.", "Nummer", "Belegnummer"),
        "subtotal": ("Zwischensumme", "Netto", "Nettobetrag"),
        "tax": ("MwSt.", "USt."),
        "total": ("Gesamtbetrag", "Summe", "Gesamt", "Rechnungsbetrag"),
        "paid": ("Bar", "Gegeben"),
        "change": ("Rückgeld",),
        "currency": ("Währung", "Alle Beträge in"),
        "footer": ("Vielen Dank für Ihren Auftrag.", "Ware bleibt bis zur Zahlung unser Eigentum."),
    },
    "fr": {
        "vendor": ("Fournisseur", "Vendeur", "De", "Émetteur"),
        "customer": ("Client", "Acheteur", "Facturé à", "Destinataire"),
        "date": ("Date", "Émis le", "Date du document"),
        "due": ("Échéance", "Payable avant le"),
        "order_date": ("Date de commande", "Commandé le"),
        "number": ("N°", "Numéro", "Référence"),
        "subtotal": ("Sous-total", "Total HT", "Montant net"),
        "tax": ("TVA", "Taxe"),
        "total": ("Total TTC", "Montant total", "Total à payer"),
        "paid": ("Espèces",),
        "change": ("Monnaie rendue",),
        "currency": ("Devise", "Montants en"),
        "footer": ("Merci de votre confiance.", "Pas d'escompte pour paiement anticipé."),
    },
    "es": {
        "vendor": ("Proveedor", "Vendedor", "De", "Emisor"),
        "customer": ("Cliente", "Comprador", "Facturar a", "Destinatario"),
        "date": ("Fecha", "Fecha de emisión", "Emitido el"),
        "due": ("Vencimiento", "Pagar antes del"),
        "order_date": ("Fecha de pedido", "Pedido el"),
        "number": ("N.º", "Número", "Referencia"),
        "subtotal": ("Subtotal", "Base imponible", "Importe neto"),
        "tax": ("IVA", "Impuesto"),
        "total": ("Total", "Importe total", "Total a pagar"),
        "paid": ("Efectivo",),
        "change": ("Cambio",),
        "currency": ("Moneda", "Importes en"),
        "footer": ("Gracias por su compra.", "No se admiten devoluciones."),
    },
    "it": {
        "vendor": ("Fornitore", "Venditore", "Da", "Emittente"),
        "customer": ("Cliente", "Acquirente", "Intestato a", "Destinatario"),
        "date": ("Data", "Data di emissione", "Emesso il"),
        "due": ("Scadenza", "Pagare entro il"),
        "order_date": ("Data ordine", "Ordinato il"),
        "number": ("N.", "Numero", "Riferimento"),
        "subtotal": ("Imponibile", "Subtotale", "Importo netto"),
        "tax": ("IVA", "Imposta"),
        "total": ("Totale", "Importo totale", "Totale da pagare"),
        "paid": ("Contanti",),
        "change": ("Resto",),
        "currency": ("Valuta", "Importi in"),
        "footer": ("Grazie per il vostro ordine.", "Merce non restituibile."),
    },
    "nl": {
        "vendor": ("Leverancier", "Verkoper", "Van", "Afzender"),
        "customer": ("Klant", "Koper", "Factuur aan", "Afnemer"),
        "date": ("Datum", "Datum van uitgifte", "Opgesteld op"),
        "due": ("Vervaldatum", "Te betalen voor"),
        "order_date": ("Besteldatum", "Besteld op"),
        "number": ("Nr.", "Nummer", "Kenmerk"),
        "subtotal": ("Subtotaal", "Netto", "Nettobedrag"),
        "tax": ("Btw", "Belasting"),
        "total": ("Totaal", "Totaalbedrag", "Te betalen"),
        "paid": ("Contant",),
        "change": ("Wisselgeld",),
        "currency": ("Valuta", "Bedragen in"),
        "footer": ("Bedankt voor uw bestelling.", "Betaling binnen dertig dagen."),
    },
}

# The customer writes a purchase order, so only these labels identify the vendor there without ambiguity.
ORDER_VENDOR_LABELS: Final[dict[str, tuple[str, ...]]] = {
    "en": ("Supplier", "Vendor", "Order to"),
    "de": ("Lieferant", "Anbieter"),
    "fr": ("Fournisseur",),
    "es": ("Proveedor",),
    "it": ("Fornitore",),
    "nl": ("Leverancier",),
}

# Prose by language: (sale, order). layouts.py fills in the fields.
PROSE: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "en": (
        (
            "{title} {number}, dated {date}. {vendor} supplied {customer} with {items}. The net amount is"
            " {subtotal}, tax comes to {tax}, and the total is {total}. Please pay by {due}.",
            "On {date} {vendor} delivered {items} to {customer} ({title} {number}). Net {subtotal} plus "
            "tax {tax} makes a total of {total}, payable by {due}.",
        ),
        (
            "{title} {number} of {date}. {customer} orders {items} from {vendor}. Net {subtotal}, tax "
            "{tax}, total {total}. Deliver by {due}.",
        ),
    ),
    "de": (
        (
            "{title} {number} vom {date}. {vendor} lieferte an {customer}: {items}. Netto {subtotal}, "
            "MwSt. {tax}, insgesamt {total}, zahlbar bis {due}.",
        ),
        (
            "{title} {number} vom {date}. {customer} bestellt bei {vendor}: {items}. Netto {subtotal}, "
            "MwSt. {tax}, insgesamt {total}. Lieferung bis {due}.",
        ),
    ),
    "fr": (
        (
            "{title} {number} du {date}. {vendor} a livré à {customer} : {items}. Montant net {subtotal},"
            " TVA {tax}, soit au total {total}, à régler avant le {due}.",
        ),
        (
            "{title} {number} du {date}. {customer} commande à {vendor} : {items}. Montant net "
            "{subtotal}, TVA {tax}, soit au total {total}. Livraison avant le {due}.",
        ),
    ),
    "es": (
        (
            "{title} {number} de fecha {date}. {vendor} entregó a {customer}: {items}. Importe neto "
            "{subtotal}, IVA {tax}, en total {total}, a pagar antes del {due}.",
        ),
        (
            "{title} {number} de fecha {date}. {customer} pide a {vendor}: {items}. Importe neto "
            "{subtotal}, IVA {tax}, en total {total}. Entrega antes del {due}.",
        ),
    ),
    "it": (
        (
            "{title} {number} del {date}. {vendor} ha consegnato a {customer}: {items}. Importo netto "
            "{subtotal}, IVA {tax}, in totale {total}, da pagare entro il {due}.",
        ),
        (
            "{title} {number} del {date}. {customer} ordina da {vendor}: {items}. Importo netto "
            "{subtotal}, IVA {tax}, in totale {total}. Consegna entro il {due}.",
        ),
    ),
    "nl": (
        (
            "{title} {number} van {date}. {vendor} leverde aan {customer}: {items}. Netto {subtotal}, btw"
            " {tax}, in totaal {total}, te betalen voor {due}.",
        ),
        (
            "{title} {number} van {date}. {customer} bestelt bij {vendor}: {items}. Netto {subtotal}, btw"
            " {tax}, in totaal {total}. Levering voor {due}.",
        ),
    ),
}

MONTHS: Final[dict[str, tuple[str, ...]]] = {
    "en": _words("January February March April May June July August September October November December"),
    "de": _words("Januar Februar März April Mai Juni Juli August September Oktober November Dezember"),
    "fr": _words("janvier février mars avril mai juin juillet août septembre octobre novembre décembre"),
    "es": _words("enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"),
    "it": _words(
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre"
    ),
    "nl": _words("januari februari maart april mei juni juli augustus september oktober november december"),
}
# Numeric dates are day first in every language, with the separator of the language.
DATE_SEPARATORS: Final = {"en": "/", "de": ".", "fr": "/", "es": "/", "it": "/", "nl": "-"}

# ISO code -> symbol, or "" if the currency is always written as its code. No two codes share a symbol.
CURRENCIES: Final[dict[str, str]] = {
    "EUR": "€",
    "USD": "$",
    "GBP": "£",
    "JPY": "¥",
    "PLN": "zł",
    "SEK": "kr",
    "CHF": "",
    "NOK": "",
    "DKK": "",
    "CZK": "",
    "CAD": "",
    "AUD": "",
}

ITEMS: Final[dict[str, tuple[str, ...]]] = {
    "en": _words("Paper Desk Chair Cable Printer Coffee Toner Keyboard Lamp Shelf Monitor Gloves Batteries"),
    "de": _words("Papier Tisch Stuhl Kabel Drucker Kaffee Toner Tastatur Lampe Regal Bildschirm Batterien"),
    "fr": _words("Papier Bureau Chaise Câble Imprimante Café Toner Clavier Lampe Gants Écran Piles"),
    "es": _words("Papel Mesa Silla Cable Impresora Café Tóner Teclado Lámpara Guantes Pantalla Pilas"),
    "it": _words("Carta Scrivania Sedia Cavo Stampante Toner Tastiera Lampada Guanti Schermo Batterie"),
    "nl": _words("Papier Bureau Stoel Kabel Printer Koffie Toner Toetsenbord Lamp Kast Scherm Batterijen"),
}

STREETS: Final[dict[str, tuple[str, ...]]] = {
    "en": ("12 High Street, Leeds", "8 Mill Lane, Bristol", "40 Dock Road, Boston", "3 Park Avenue, Cork"),
    "de": ("Hauptstraße 12, München", "Am Markt 3, Bremen", "Ringweg 41, Wien", "Seeallee 7, Zürich"),
    "fr": ("4 rue du Port, Nantes", "18 avenue Foch, Lyon", "7 quai Sud, Genève"),
    "es": ("Calle Mayor 5, Madrid", "Avenida del Sol 21, Sevilla", "Plaza Nueva 9, Bilbao"),
    "it": ("Via Roma 14, Torino", "Corso Italia 6, Milano", "Piazza Dante 2, Napoli"),
    "nl": ("Kerkstraat 11, Utrecht", "Havenweg 5, Rotterdam", "Dorpsplein 28, Gent"),
}

# Parts of names: a stem plus an ending forms a word ("Nordwind"); syllables form invented words.
STEMS: Final = _words(
    "Nord Sud West Ost Blue Green Silver Stone River Star Sun Moon Oak Berg Wald Linden Adler Falken "
    "Nova Alta Terra Aqua Luna Sol Monte Casa Bella Grand Fort Clair Beau Hansa Rhein Alpen Inter "
    "Euro Trans Omni Meta Opti"
)
ENDINGS: Final = _words(
    "wind field brook hof haus tal mont ville mar port line tech gate bridge land burg mark stern "
    "feld wood ford dale via nova form plan net"
)
FAMILIES: Final = _words(
    "Müller Schmidt Weber Fischer Martin Dubois Lefèvre Moreau García López Ortega Navarro Rossi "
    "Bianchi Ferrari Conti Jansen Visser Bakker Smit Baker Turner Walsh Hughes Novák Kowalski "
    "Lindqvist Nilsson Hansen Keller Meier Roth Sato Patel Costa Silva Brown Clark Murphy Reid"
)
SYLLABLES: Final = _words(
    "ka ro mi ten sul vor bre nix tal dor quin zel fa lu per gra ost im bel tra vin cor mo sa ri den "
    "hal ju ke lor pax ra ste tu um wex yl zan"
)
SECTORS: Final = _words(
    "Logistics Trading Systems Foods Energy Textiles Print Media Tools Motors Pharma Office Supply "
    "Software Design Metall Papier Technik Bau Transport Conseil Services Distribution Alimentos Moda "
    "Arredi Ceramica Meubelen Bloemen Bakery Cycles Optics Plastics Garden Security"
)
LEGAL_FORMS: Final = _words("GmbH AG KG SA SARL SAS SL SRL SpA BV NV Ltd LLC Inc PLC")
