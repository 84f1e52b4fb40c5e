"""Files into the database, and drafts of `silkrec.yaml` out of files.

`job.py` runs an import: `sources` reads a file as numbered rows, `plan` says which column is which field, `events` and
`records` check them by the rules of the API, `write` and the services' own writers store them, `progress` remembers how
far it came in the same transaction. `draft.py` guesses what a file holds. Nothing here knows HTTP or the command line.
"""
