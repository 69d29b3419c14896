"""The Celery tasks that take a job from its input file to its output file."""
