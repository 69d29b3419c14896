"""Tables as files: CSV, TSV, JSON lines, Parquet and xlsx, written row by row."""
