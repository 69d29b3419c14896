"""Extract the fields of a document as a pydantic model. The answer always has its form.

python examples/extract_pydantic.py invoice.txt
"""

import os
import sys
from pathlib import Path

from openai import OpenAI
from pydantic import BaseModel, Field

if len(sys.argv) != 2:
    sys.exit("usage: python examples/extract_pydantic.py DOCUMENT")
client = OpenAI(
    base_url=os.environ.get("BROS_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BROS_API_KEY", "none"),
)


class Invoice(BaseModel):
    vendor: str | None = Field(max_length=80)
    date: str | None = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    total: str | None = Field(pattern=r"^\d{1,9}\.\d{2}$")
    currency: str | None = Field(pattern=r"^[A-Z]{3}$")


document = Path(sys.argv[1]).read_text(encoding="utf-8")
answer = client.chat.completions.parse(
    model=client.models.list().data[0].id,
    messages=[
        {"role": "user", "content": f"Extract vendor, date, total and currency as JSON.\n\n{document}"}
    ],
    response_format=Invoice,
    temperature=0,
)
invoice = answer.choices[0].message.parsed
assert invoice is not None
print(invoice.model_dump_json(indent=2))
