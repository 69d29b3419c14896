"""The database: connections, tables, the statuses of jobs and items, and every query, one file per theme.

A query takes an open connection from `connections.reading` or, if it writes, from `connections.writing`.
"""
