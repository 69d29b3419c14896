"""Commands about jobs: submit, list, status, results, errors, cancel, pause, resume and rerun."""
