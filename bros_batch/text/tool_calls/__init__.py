"""Tool calls in the text of an output: the forms in which models write them, and an incremental parser."""
