"""The Python interface, which `import bros_batch` offers: tables in, columns out."""
