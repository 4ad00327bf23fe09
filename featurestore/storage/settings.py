"""What the environment says of object storage: endpoint, credentials and options, for obstore and Lance alike.

The variables are those of the services' own tools. For S3 the shared files of AWS are read too, for static keys, region
and endpoint of a profile; what a variable says goes first. Nothing of this is ever written to a store.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from featurestore.errors import UsageError

ALLOW_HTTP = "_ALLOW_HTTP"
VARIABLES = {  # by scheme: those that obstore and Lance are given; obstore finds further ones itself, such as a role's
    "s3": (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL"),
        *("AWS_SKIP_SIGNATURE", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_REQUEST_PAYER", f"AWS{ALLOW_HTTP}"),
    ),
    "gs": (
        *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BASE_URL"),
        *("GOOGLE_SKIP_SIGNATURE", f"GOOGLE{ALLOW_HTTP}"),
    ),
    "az": (
        *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
        *("AZURE_STORAGE_ENDPOINT", "AZURE_SKIP_SIGNATURE", f"AZURE{ALLOW_HTTP}"),
    ),
}
OPTIONS = {  # of --storage-option, and the variables that each sets
    "endpoint": ("AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL"),
    "region": ("AWS_REGION",),
    "profile": ("AWS_PROFILE",),
    "account": ("AZURE_STORAGE_ACCOUNT_NAME",),
    "allow_http": ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP"),
    "anonymous": ("AWS_SKIP_SIGNATURE", "AZURE_SKIP_SIGNATURE", "GOOGLE_SKIP_SIGNATURE"),
    "requester_pays": ("AWS_REQUEST_PAYER",),
    "virtual_hosted": ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST",),
}
OF_PROFILE = {  # entries of a profile in the shared files of AWS, and the variables that go before them
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_session_token": "AWS_SESSION_TOKEN",
    "region": "AWS_REGION",
    "endpoint_url": "AWS_ENDPOINT_URL",
}
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # these belong together
SAME = {"AWS_ENDPOINT": "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION": "AWS_REGION"}  # two names of one thing


def use(options: Iterable[str]) -> None:
    """Set what ``--storage-option`` says, as KEY=VALUE, for this process and all that it starts.

    Raises:
        UsageError: there is no such key, or no value.
    """
    for option in options:
        key, _, value = option.partition("=")
        if key not in OPTIONS or not value:
            raise UsageError(f"Expected: --storage-option KEY=VALUE with a KEY of {', '.join(OPTIONS)}. Got: {option}.")
        os.environ.update(dict.fromkeys(OPTIONS[key], value))


def settings(scheme: str) -> dict[str, str]:
    """Return the variables that clients of a scheme's service go by, from the environment and the profile."""
    names = VARIABLES.get(scheme, ())
    found = {name: os.environ[other] for other, name in SAME.items() if name in names and other in os.environ}
    found |= {name: os.environ[name] for name in names if name in os.environ}
    return _of_profile(found) | found if scheme == "s3" else found


def _of_profile(found: Mapping[str, str]) -> dict[str, str]:
    """Return what the profile says, without its keys where variables hold some."""
    files = [
        Path(os.environ.get(name) or Path.home() / ".aws" / file)
        for name, file in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials"))
    ]
    profile = os.environ.get("AWS_PROFILE")
    told = dict(_profile(profile or "default", *((path, _stamp(path)) for path in files)))
    if profile and not told:
        raise UsageError(f"AWS_PROFILE: {profile} is in neither of {' and '.join(map(str, files))}: name another.")
    own_keys = any(name in found for name in (*KEYS, "AWS_SKIP_SIGNATURE"))
    return {name: value for name, value in told.items() if not (own_keys and name in KEYS)}


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=16)
def _profile(profile: str, *files: tuple[Path, int]) -> tuple[tuple[str, str], ...]:
    """Return what files, each with the time of its last change, say of a profile, by the names of variables."""
    told: dict[str, str] = {}
    for path, _ in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            raise UsageError(f"Expected: the settings of AWS in {path}. Got: {str(error).splitlines()[0]}.") from error
        for section in (profile, f"profile {profile}"):
            if parser.has_section(section):
                told |= dict(parser.items(section))
    return tuple((OF_PROFILE[name], value) for name, value in told.items() if name in OF_PROFILE)
