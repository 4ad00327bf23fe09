"""What a server of objects answered, as one sentence that says what happened and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from featurestore.errors import BucketError, ObjectDenied, ObjectMissing

RERUN = "then run the same command again; what was finished is kept"
RIGHTS = {"read": "s3:GetObject", "write": "s3:PutObject", "list": "s3:ListBucket", "delete": "s3:DeleteObject"}
PAST = {"read": "read", "write": "written", "list": "listed", "delete": "deleted"}


class PastEnd(BucketError):
    """Bytes behind an object's end."""


class BrokenOff(BucketError):
    """The connection was cut within an answer that obstore does not ask for again."""


@dataclass(frozen=True)
class Answer:
    """A pattern in what obstore says, and what it means; ``passing``: it may be otherwise at the next try;
    ``of_server``: it says nothing of the object."""

    pattern: str
    sentence: str
    kind: type[BucketError] = BucketError
    passing: bool = False
    of_server: bool = True


NO_BUCKET = "There is no bucket {root} at {server}: make it, or name another."
WAYS_IN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
PUBLIC = "AWS_SKIP_SIGNATURE=true for a public bucket"
UNREACHED = "{server} cannot be reached for {root}: look after the network or correct AWS_ENDPOINT_URL, {rerun}."
ANSWERS = [  # the first that matches says it
    Answer("NoSuchBucket|ContainerNotFound|bucket does not exist", NO_BUCKET),
    Answer("InvalidBucketName", "{root} is no name of a bucket at {server}: name another."),
    Answer("ExpiredToken|TokenRefreshRequired", "The credentials for {root} have expired: get new ones, {rerun}."),
    Answer(
        "RequestTimeTooSkewed|RequestExpired|difference between the request time",
        "The clock of this machine differs too much from that of {server}: set it, {rerun}.",
    ),
    Answer(
        "InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|AuthenticationFailed",
        f"{{server}} does not know the credentials for {{root}} ({{code}}): {WAYS_IN}.",
    ),
    Answer(
        r"169\.254\.169\.254|metadata\.google|[Nn]o ?[Cc]redential",
        f"There are no credentials for {{root}}: {WAYS_IN}, or {PUBLIC}.",
    ),
    Answer(
        "AuthorizationHeaderMalformed|PermanentRedirect|incorrectly configured region|redirect without LOCATION",
        "{root} lies in another region: set AWS_REGION.",
    ),
    Answer(
        "builder error|scheme is not allowed",
        "{server} is no https address: set AWS_ALLOW_HTTP=true if that is what you want, or AWS_ENDPOINT_URL.",
    ),
    Answer(
        " 40[13] |Unauthenticated",
        "{uri} may not be {past} with these credentials: give them the right to{right}, or use others.",
        ObjectDenied,
    ),
    Answer("list request.* 404 ", NO_BUCKET),
    Answer(" 404 |^Object at location", "There is no object {uri}.", ObjectMissing, of_server=False),
    Answer(
        " (429|503) |SlowDown|TooManyRequests|ServerBusy",
        "{server} asks to slow down, and went on to: wait, {rerun}.",
        passing=True,
    ),
    Answer(" (500|502|504|408) |InternalError", "{server} fails ({code}): wait, {rerun}.", passing=True),
    Answer(
        " 501 |[Nn]ot (yet )?(supported|implemented)",
        "{server} cannot do what penult needs ({code}): use another server.",
    ),
    Answer(" 416 ", "Expected: {uri} to be longer. Got: its end.", PastEnd, of_server=False),
    Answer(
        "invalid path|Could not parse path",
        "Expected: names of objects below {uri} without empty parts, '.', '..' and control characters. Got: {said}.",
    ),
    Answer(
        "invalid list response|Missing(Etag|Header)|missing field",
        "{server} does not answer as S3 does: correct AWS_ENDPOINT_URL.",
    ),
    Answer("Error (performing|getting) .*response body error", UNREACHED, BrokenOff, passing=True),
    Answer("error sending request|HTTP error|timed out|[Cc]onnect", UNREACHED, passing=True),
]
NOT_PUBLIC = Answer("", "{server} does not let everyone read {uri} ({code}): name what is public.", ObjectDenied)
OTHER = Answer("", "{uri} cannot be {past}: {said}: look after that bucket, {rerun}.", of_server=False)


def error_for(error: BaseException, uri: str, root: str, verb: str, settings: Mapping[str, str]) -> BucketError:
    """Return the error for users for what obstore raised.

    Args:
        error: obstore's.
        uri: what was read, written, listed or deleted.
        root: the URI of its bucket.
        verb: which of these.
        settings: of the service, for the address of its server.
    """
    said = str(error).partition("\n\nDebug source")[0]
    answer = next((one for one in ANSWERS if re.search(one.pattern, said)), OTHER)
    if answer.kind is ObjectDenied and root.startswith("http"):
        answer = NOT_PUBLIC
    code = re.search(r"<Code>(\w+)</Code>", said) or re.search(r"status code: (\d+)", said)
    sentence = answer.sentence.format(
        uri=uri,
        root=root,
        server=settings.get("AWS_ENDPOINT_URL", root) if root.startswith("s3:") else root,
        past=PAST[verb],
        right=f" ({RIGHTS[verb]})" if root.startswith("s3:") else "",
        code=code[1] if code else type(error).__name__,
        said=" ".join(said.split())[:300],
        rerun=RERUN,
    )
    told = answer.kind(sentence)
    told.passing, told.of_server = answer.passing, answer.of_server
    return told
