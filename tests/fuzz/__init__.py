"""Random and hostile input at every way into the services, while a chat and a job that are innocent go on.

`scripts/test` runs a few examples of each test; `scripts/fuzz --minutes N` runs as many as there is time for, and keeps
the inputs that failed, so that the next run tries them first.
"""
