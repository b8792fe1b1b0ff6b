"""One role and one database a service, on any PostgreSQL we hold an administrator's DSN for.

A service that keeps history has two roles: the one that it works under, and `…_owner`, which owns the tables and brings
the schema up to date. The first may then not change what the second forbids.
"""

import re
from collections.abc import Callable
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,62}")


def create_database(
    admin_dsn: str, name: str, password_of: Callable[[str], str], *, template: str | None = None
) -> str:
    """Create the role and the database `name`, both if missing, and return the role's DSN.

    Only the owner may connect: PUBLIC loses CONNECT. `template` copies an existing database, which nobody may
    be connected to meanwhile (tests use it to skip migrations). Repeating the call changes nothing but the
    role's password, which becomes `password_of(name)`.

    Raises ValueError for a name that is no plain identifier, before anything is done with it.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(f"{name!r} is not a database name: lower-case letters, digits and _, at most 63")
    password = password_of(name)
    with psycopg.connect(admin_dsn, autocommit=True) as connection:
        _save_role(connection, name, password)
        if not _exists(connection, "SELECT 1 FROM pg_database WHERE datname = %s", name):
            _insert_database(connection, name, template)
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
    return role_dsn(admin_dsn, name, password)


def create_apart(admin_dsn: str, name: str, password_of: Callable[[str], str]) -> tuple[str, str]:
    """Create the database `name` with two roles, `name` and `name_owner`, what is missing of it; return their DSNs. A
    database that belonged to `name` until now, with all that is in it, is handed over."""
    owner = f"{name}_owner"
    dsn = create_database(admin_dsn, name, password_of)
    owner_password = password_of(owner)
    role, owner_role = sql.Identifier(name), sql.Identifier(owner)
    with psycopg.connect(admin_dsn, autocommit=True) as connection:
        _save_role(connection, owner, owner_password)
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(role, owner_role))
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(role, role))
    with psycopg.connect(_in_database(admin_dsn, name), autocommit=True) as connection:
        connection.execute(sql.SQL("REASSIGN OWNED BY {} TO {}").format(role, owner_role))
        connection.execute(sql.SQL("REVOKE CREATE ON SCHEMA public FROM {}, PUBLIC").format(role))
    return dsn, role_dsn(admin_dsn, owner, owner_password, database=name)


def _in_database(admin_dsn: str, name: str) -> str:
    return make_conninfo(admin_dsn, dbname=name)


def drop_database(admin_dsn: str, name: str) -> None:
    """Drop the database and its roles, ending every connection to it; missing ones are fine."""
    with psycopg.connect(admin_dsn, autocommit=True) as connection:
        identifier = sql.Identifier(name)
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier))
        for role in (name, f"{name}_owner"):
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def role_dsn(admin_dsn: str, name: str, password: str, *, database: str = "") -> str:
    """The administrator's DSN with role, password and database (that of the role's name, unless another is given)
    replaced, as a URL; TLS options are kept."""
    options = {key: str(value) for key, value in conninfo_to_dict(admin_dsn).items() if value is not None}
    for replaced in ("user", "password", "dbname", "passfile"):
        options.pop(replaced, None)
    address = ""
    if (host := options.get("host", "")) and not host.startswith("/") and "," not in host:
        literal = f"[{host}]" if ":" in host else host
        address = f"{literal}:{options.pop('port', '5432')}"
        del options["host"]
    query = f"?{urlencode(options, quote_via=quote)}" if options else ""
    return f"postgresql://{quote(name)}:{quote(password)}@{address}/{quote(database or name)}{query}"


def _save_role(connection: psycopg.Connection, name: str, password: str) -> None:
    role = sql.Identifier(name)
    if not _exists(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", name):
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        if not _exists(connection, "SELECT 1 FROM pg_roles WHERE rolname = current_user AND rolsuper"):
            # Only a member of a role may give a database to it.
            connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(role))
    # Encrypted here, so that the password itself never reaches the server or its log.
    encrypted = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256")
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(encrypted.decode()))
    connection.execute(statement)


def _insert_database(connection: psycopg.Connection, name: str, template: str | None) -> None:
    identifier = sql.Identifier(name)
    if template is not None:
        statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}")
        connection.execute(statement.format(identifier, identifier, sql.Identifier(template)))
        return
    # Byte order sorts the same on every machine and is the fastest; template0 permits another locale than the
    # server's own.
    statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING 'UTF8' {} 'C'")
    locale = sql.SQL("LOCALE_PROVIDER libc LOCALE")
    if connection.info.server_version < 150000:
        locale = sql.SQL("LOCALE")
    connection.execute(statement.format(identifier, identifier, locale))


def _exists(connection: psycopg.Connection, query: str, *arguments: str) -> bool:
    return connection.execute(query.encode(), arguments).fetchone() is not None
