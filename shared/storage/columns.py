"""What every table is made of: the metadata, the options of MySQL, and the types of columns that recur."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, LargeBinary, MetaData, String
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.types import JSON, TypeEngine

from shared.identity import ID_MAX_LENGTH, USER_KEY_MAX_LENGTH

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def ascii_text(length: int) -> TypeEngine[str]:
    return String(length).with_variant(
        mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
    )


def serial() -> TypeEngine[int]:
    """SQLite numbers only a plain INTEGER primary key by itself."""
    return BigInteger().with_variant(sqlite.INTEGER(), "sqlite")


def long_blob() -> TypeEngine[bytes]:
    """MySQL's BLOB ends at 64 KiB."""
    return LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


ID = ascii_text(ID_MAX_LENGTH)
USER_KEY = ascii_text(USER_KEY_MAX_LENGTH)
NAME = ascii_text(64)
LONG_JSON = JSON(none_as_null=True)
