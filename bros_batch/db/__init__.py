"""The database: connections, tables, the statuses of jobs and items, and every query, one file per theme."""
