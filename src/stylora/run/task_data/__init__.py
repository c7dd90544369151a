"""`stylora data make`: data of two tasks, generated from lists of names and a seed, with splits by alias.

    vehicles.py, pollutants.py, column_names.py   what people call things, by class
    wordings.py, columns.py                       how they write it
    parts.py                                      which aliases stand in which file
    unified.py, columns.py                        rows
    writing.py                                    files

Imports no torch, opens no model, reads nothing from disk.
"""
