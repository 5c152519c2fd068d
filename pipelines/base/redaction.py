"""Secrets that a recipe may hold for a download, and that nothing published may repeat."""

import re
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import BeforeValidator

SECRET_WORDS = {
    "token",
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "credential",
    "credentials",
    "auth",
    "authorization",
    "bearer",
    "cookie",
    "cookies",
    "signature",
    "sig",
    "sas",
    "apikey",
}
KEY_OWNERS = {"api", "access", "private", "account", "service", "subscription", "encryption", "ssh"}
ALL_SECRET = {"storage_options", "headers", "client_kwargs"}  # every text below these names is taken for a secret


def is_secret(name: str) -> bool:
    """Whether an option of this name holds a secret: `token`, `hf_token`, `api_key`; not `tokens` nor `key`."""
    separated = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()
    words = set(re.split(r"[^a-z0-9]+", separated))
    return bool(words & SECRET_WORDS or ({"key", "keys"} & words and words & KEY_OWNERS))


def redact(content: Any) -> Any:
    """`content` without its secrets: secret options are left out, addresses lose user, password and secret arguments.

    Booleans and None are no secrets (`token: true` means: use the stored login).
    """
    if isinstance(content, str):
        return _redacted_address(content)
    if isinstance(content, list | tuple):
        return [redact(value) for value in content]
    if not isinstance(content, dict):
        return content
    kept = {}
    for name, value in content.items():
        if is_secret(str(name)) or name in ALL_SECRET:
            if (value := _without_texts(value)) is not None:
                kept[name] = value
        else:
            kept[name] = redact(value)
    return kept


Public = Annotated[dict[str, Any], BeforeValidator(redact)]
"""A mapping that is published: secrets are left out when it is validated."""


def _without_texts(value: Any) -> Any:
    """The booleans of a secret option, also those inside of mappings; None where nothing is left."""
    if isinstance(value, dict):
        return {name: kept for name, inner in value.items() if (kept := _without_texts(inner)) is not None} or None
    return value if isinstance(value, bool) else None


def _redacted_address(text: str) -> str:
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
        host = parts.netloc.rpartition("@")[2]
        arguments = parse_qsl(parts.query, keep_blank_values=True)
        signed = any(is_secret(name) or name.lower().startswith("x-amz-") for name, _ in arguments)
    except ValueError:
        return text
    if host == parts.netloc and not signed:
        return text
    public = [(name, value) for name, value in arguments if not (is_secret(name) or name.lower().startswith("x-amz-"))]
    return urlunsplit((parts.scheme, host, parts.path, urlencode(public), parts.fragment))
