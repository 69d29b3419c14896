"""Commands about jobs: submit, list, status, results, errors, cancel, pause, resume, rerun, export and import."""
