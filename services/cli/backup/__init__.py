"""`silkrec backup create|restore`: database and artifacts as one dated folder whose every file has a sha256.

Owns the folder's format and both directions. A database server's rows are exported by us in one consistent snapshot
(`rows`), because mariadb-dump is in none of the packages that a service needs, and one format goes back into MySQL and
MariaDB alike; SQLite's file is copied by its own online backup (`sqlite_file`). Redis is not part of it: it is rebuilt.
Nor are slates that the journal has not brought to the database yet.
"""
