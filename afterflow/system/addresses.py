"""Addresses of servers, and the secrets that they must not hold: records, logs and model cards show addresses."""

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import urlsplit

from .errors import ConfigError

KEY = re.compile(
    r"(?i:(sk|pk|hf|api|key|token|secret|xox[a-z]|gh[a-z])[-_].{6,})"
    r"|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    r"|(?=[^-_.]*\d)(?=[^-_.]*[A-Za-z])[A-Za-z0-9]{20,}.*"
    r"|.*[-_.](?=[^-_.]*\d)(?=[^-_.]*[A-Za-z])[A-Za-z0-9]{20,}"
)
"""A segment of a path that looks like a key: a known beginning, a UUID, or 20 letters and digits in one word."""

NAMES_MODELS = "reward_models.weights"
"""Option whose addresses name a model behind #."""


def check_address(option: str, address: str) -> None:
    """Raise ConfigError for what is no address, or one with a secret."""
    try:
        url = urlsplit(address)
        known = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        known = False
    if not known:
        raise ConfigError(f"{option} = {address.rpartition('@')[2]!r}: an address is http://HOST:PORT or https://...")
    check_no_secret(option, address)


def check_no_secret(option: str, value: str) -> None:
    """Raise ConfigError for an address with a user, password, query, fragment or key; the message does not repeat it.

    Other texts pass.
    """
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]*://\S*", value):
        return
    try:
        url = urlsplit(value)
    except ValueError:
        raise ConfigError(f"{option}: it begins as an address and is none; correct it") from None
    held = [name for name, part in (("a user", "@" in url.netloc), ("a query", url.query)) if part]
    held += ["a fragment"] if url.fragment and not option.startswith(NAMES_MODELS) else []
    segments = (*url.path.split("/"), url.fragment)
    held += ["what looks like a key"] if any(map(KEY.fullmatch, segments)) else []
    if held:
        raise ConfigError(
            f"{option}: the address at {url.scheme}://{url.hostname} holds {' and '.join(held)}, and records show "
            "addresses; leave it out, and set the environment variable with the key instead"
        )


def check_no_secrets(value: Any, name: str = "") -> None:
    """Raise ConfigError where any text of an option, however deep, is an address with a secret."""
    inside = f"{name}." if name else ""
    if isinstance(value, str):
        for part in value.split(","):
            check_no_secret(name, part)
    elif is_dataclass(value):
        for field in fields(value):
            check_no_secrets(getattr(value, field.name), inside + field.name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_no_secrets(item, f"{inside}{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            check_no_secrets(item, name)
