"""Extract the fields of every row of a table, and write the table with a column for each field.

python examples/map_table.py invoices.csv invoices.xlsx
"""

import sys

from pydantic import BaseModel, Field

import bros_batch

if len(sys.argv) != 3:
    sys.exit("usage: python examples/map_table.py TABLE OUTPUT")


class Invoice(BaseModel):
    vendor: str | None = Field(max_length=80)
    date: str | None = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    total: str | None = Field(pattern=r"^\d{1,9}\.\d{2}$")
    currency: str | None = Field(pattern=r"^[A-Z]{3}$")


path = bros_batch.map(
    sys.argv[1],
    "Extract vendor, date, total and currency as JSON.\n\n{text}",
    schema=Invoice,
    temperature=0,
    output=sys.argv[2],
)
print(path)
