"""The text of one document: plain text, Markdown, HTML, PDF or docx."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from bros_batch.documents.readers.table import UnreadableTable
from bros_batch.documents.readers.text_encoding import encoding_of
from bros_batch.documents.readers.zip_archive import ERRORS, check_sizes, office_format, opened_archive

if TYPE_CHECKING:
    from bs4 import BeautifulSoup
    from docx.table import Table as DocxTable

SUFFIXES = (".txt", ".md", ".markdown", ".html", ".htm", ".pdf", ".docx")
HTML_SUFFIXES = (".html", ".htm")
MAX_DOCUMENT_BYTES = 256 * 1024**2
# A service takes no longer line than this unless it is told to, and no model reads as much.
MAX_TEXT_CHARS = 12 * 1024**2
_HTML_STARTS = (b"<!doctype html", b"<html")


class UnreadableDocument(Exception):
    """The document has no text that can be read. The message says why, and names the page if one is to blame."""


@dataclass(frozen=True, slots=True)
class DocumentText:
    """A text, and the number of pages if the format has pages."""

    text: str
    pages: int | None


def is_document(path: str) -> bool:
    """Return whether the name is that of a document, and not that of a table or of anything else."""
    return path.lower().endswith(SUFFIXES)


def is_html(head: bytes) -> bool:
    """Return whether a text begins as a page of HTML does."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:20].lower().startswith(_HTML_STARTS)


def document_text(name: str, file: BinaryIO) -> DocumentText:
    """Read a document. Its content says what it is; only HTML is also told by its name. Raises UnreadableDocument."""
    data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise UnreadableDocument(f"the file is larger than {MAX_DOCUMENT_BYTES // 1024**2} MB")
    if data[:1024].lstrip().startswith(b"%PDF"):
        found = _pdf(data)
    elif data.startswith(b"PK\x03\x04"):
        found = DocumentText(_docx(name, data), None)
    else:
        found = DocumentText(_text(name, data), None)
    if len(found.text) > MAX_TEXT_CHARS:
        raise UnreadableDocument(f"the text has more than {MAX_TEXT_CHARS:,} characters; split the file")
    return found


def _text(name: str, data: bytes) -> str:
    encoding = encoding_of(data, is_whole=True)
    if encoding is None:
        raise UnreadableDocument("it is not text, PDF or docx")
    text = data[encoding[1] :].decode(encoding[0], errors="replace")
    return _html(text) if name.lower().endswith(HTML_SUFFIXES) or is_html(data) else text


def _html(text: str) -> str:
    from bs4 import BeautifulSoup

    try:
        soup = BeautifulSoup(text, "html.parser")
        for hidden in soup(["script", "style", "template", "noscript"]):
            hidden.decompose()
        return _joined(soup)
    except RecursionError:
        raise UnreadableDocument("its HTML is nested too deeply") from None


def _joined(soup: BeautifulSoup) -> str:
    lines = (" ".join(line.split()) for line in soup.get_text("\n").splitlines())
    return "\n".join(line for line in lines if line)


def _pdf(data: bytes) -> DocumentText:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise UnreadableDocument("the PDF needs a password; save it without one") from None
        raise UnreadableDocument("the PDF is damaged; open and save it again") from None
    texts = []
    size = 0
    try:
        for number in range(len(document)):
            try:
                page = document[number]
                text = page.get_textpage().get_text_bounded()
            except pypdfium2.PdfiumError:
                raise UnreadableDocument(f"page {number + 1} of the PDF is damaged") from None
            texts.append(text.replace("\r\n", "\n").strip())
            size += len(text)
            if size > MAX_TEXT_CHARS:
                break
        pages = len(document)
    finally:
        document.close()
    if pages and not any(texts):
        what = "its one page" if pages == 1 else f"any of its {pages} pages"
        raise UnreadableDocument(f"the PDF has no text on {what}; it may be scanned, and needs OCR first")
    return DocumentText("\n\n".join(texts), pages)


def _docx(name: str, data: bytes) -> str:
    import docx
    from docx.opc.exceptions import OpcError
    from docx.table import Table as DocxTable

    try:
        with opened_archive(name, io.BytesIO(data)) as archive:
            if office_format(archive) != "docx":
                raise UnreadableDocument("it is a zip file, but not a docx document")
            check_sizes(name, archive)
    except UnreadableTable as error:
        raise UnreadableDocument(str(error).removeprefix(f"{name} ").rstrip(".")) from None
    try:
        document = docx.Document(io.BytesIO(data))
        parts = [
            _table_text(part) if isinstance(part, DocxTable) else part.text
            for part in document.iter_inner_content()
        ]
    except (OpcError, KeyError, SyntaxError, AttributeError, zipfile.BadZipFile, *ERRORS):
        raise UnreadableDocument("the docx document is damaged; open and save it again") from None
    return "\n".join(parts)


def _table_text(table: DocxTable) -> str:
    return "\n".join("\t".join(cell.text for cell in row.cells) for row in table.rows)
