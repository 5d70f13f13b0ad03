"""The result file, and all that is made of it: tables, targets, pictures, documents, crossovers."""
