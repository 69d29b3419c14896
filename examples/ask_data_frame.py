"""Answer questions about every row of a data frame, and show the rows of which the model is least certain first.

python examples/ask_data_frame.py mails.csv
"""

import sys

import pandas

import bros_batch

if len(sys.argv) != 2:
    sys.exit("usage: python examples/ask_data_frame.py MAILS.CSV")
mails = pandas.read_csv(sys.argv[1])
answered = bros_batch.ask(
    mails,
    {
        "urgent": "The writer needs an answer today.",
        "team": ("Which team should answer?", ["billing", "access", "sales"]),
        "mood": ("How annoyed is the writer, from 1 to 5?", range(1, 6)),
    },
    "{text}",
)
print(answered.sort_values("team_probability").to_string(max_colwidth=40))
