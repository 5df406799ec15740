"""How a registry is satisfied that asks who we are: Basic and Bearer, as conversations without sockets.

``authorize`` is a generator: it yields the requests that are to be made (to a token server) and is sent their
answers; its result is the ``Authorization`` to use. Sources: the distribution project's token and OAuth 2
specifications, RFC 6750.

Invariant: a secret is put only into a request to the realm that the registry itself named, over https, or over http
where the registry is allowed plain http itself; and no text of a registry reaches a header before it is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from crungo.errors import AuthenticationError, RegistryError
from crungo.records import Record, field
from crungo.registry.credentials import TOKEN_USER, Credential
from crungo.registry.failures import refused
from crungo.registry.headers import printable
from crungo.registry.hosts import is_loopback

if TYPE_CHECKING:
    from crungo.registry.challenges import Challenge

__all__ = ["Authorization", "TokenAnswer", "TokenRequest", "authorize", "merge_scopes", "pull_scope"]

_CLIENT_ID = "crungo"
_DEFAULT_LIFETIME = 60.0  # seconds, where the answer says nothing (token specification)
_URL = re.compile(r"[\x21-\x7e]{1,4096}")
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")
_SCOPE = re.compile(r"(?P<resource>[a-z0-9]+(?:\([^\s:,()]+\))?:[^\s,]+):(?P<actions>[A-Za-z*,]+)")
# Codes by which token servers say that they know no OAuth 2, so that the older GET is worth trying.
_NO_OAUTH = frozenset({400, 404, 405, 501})


class TokenRequest(Record):
    """A request to a token server: GET, or POST where there is a ``form``."""

    url: str
    authorization: str | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)


class TokenAnswer(Record):
    """The answer to a ``TokenRequest``; the names of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)


class Authorization(Record):
    """The value of an ``Authorization`` header, good for ``lifetime`` seconds from its receipt (None: for ever).

    ``identity_token`` is a refresh token that the server gave with it. An empty ``header`` means that none is needed.
    """

    header: str = field(repr=False)
    lifetime: float | None = None
    identity_token: str = field(default="", repr=False)


TokenFlow = Generator[TokenRequest, TokenAnswer, Authorization]


def authorize(
    challenges: Sequence[Challenge],
    *,
    what: str,
    registry: str,
    credential: Credential | None,
    scopes: Iterable[str] = (),
    plain_http: bool = False,
    insecure: bool = False,
    offline: bool = False,
) -> TokenFlow:
    """Answer a 401. ``what`` and ``registry`` are for messages; ``scopes`` are asked for beyond the challenge's own.

    ``plain_http``: the registry was reached by http, so a token server on this machine may be too; ``insecure``: any
    token server may. ``offline`` asks for an identity token to keep (login).

    Raises:
        AuthenticationError: credentials are missing or refused, or no challenge can be answered.
        RegistryError: the token server fails, or its answer is malformed.
    """
    usable = {challenge.scheme: challenge for challenge in reversed(challenges)}  # the first of each scheme
    bearer, basic = usable.get("bearer"), usable.get("basic")
    if bearer is not None and credential and credential.registry_token:
        return _checked(what, registry, credential.registry_token)
    if bearer is not None and bearer.params.get("realm"):
        case = _TokenCase(
            realm=_realm(bearer.params["realm"], what, registry, plain_http=plain_http, insecure=insecure),
            service=bearer.params.get("service", ""),
            scopes=merge_scopes([*bearer.params.get("scope", "").split(), *scopes]),
            credential=credential,
            what=what,
            registry=registry,
            offline=offline,
        )
        return (yield from _bearer(case))
    if basic is not None:
        if credential and credential.password:
            return Authorization(header=credential.basic())
        raise AuthenticationError(
            f"{what}: {registry} wants a user name and a password", hint=f"log in first: crungo login {registry}"
        )
    offered = printable(", ".join(challenge.scheme for challenge in challenges)) or "none"
    raise AuthenticationError(f"{what}: {registry} wants a login of an unknown kind ({offered})", status=401)


def pull_scope(repository: str) -> str:
    """The scope that reading a repository takes."""
    return f"repository:{repository}:pull"


def merge_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """The scopes with each resource once and all actions asked for it, in the order of first mention."""
    actions: dict[str, list[str]] = {}
    others: list[str] = []
    for scope in scopes:
        match = _SCOPE.fullmatch(scope)
        if match is None:
            others += [scope] if scope and scope not in others else []
            continue
        known = actions.setdefault(match["resource"], [])
        known += [action for action in dict.fromkeys(match["actions"].split(",")) if action and action not in known]
    return (*(f"{resource}:{','.join(names)}" for resource, names in actions.items()), *others)


class _TokenCase(Record):
    """All that one conversation with a token server is about."""

    realm: str
    service: str
    scopes: Sequence[str]
    credential: Credential | None
    what: str
    registry: str
    offline: bool


def _bearer(case: _TokenCase) -> TokenFlow:
    """OAuth 2 where there is an identity token, and else, or where the server knows no OAuth 2, the older GET."""
    answer: TokenAnswer | None = None
    if case.credential and case.credential.identity_token:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": case.credential.identity_token,
            "service": case.service,
            "client_id": _CLIENT_ID,
            "scope": " ".join(case.scopes),
        }
        answer = yield TokenRequest(url=case.realm, form=form)
    if answer is None or answer.status in _NO_OAUTH:
        answer = yield _get(case)
    if answer.status != 200:
        who = f"token server of {case.registry}"
        error = refused(case.what, who, answer.status, headers=answer.headers, body=answer.body)
        if answer.status in (401, 403):
            known = "the stored credentials were refused; log in again" if case.credential else "log in first"
            error.hint = f"{known}: crungo login {case.registry}"
        raise error
    return _token(answer, case.what, case.registry)


def _get(case: _TokenCase) -> TokenRequest:
    query = [("service", case.service)] if case.service else []
    query += [("scope", scope) for scope in case.scopes]
    authorization, credential = None, case.credential
    if credential:
        username = credential.username or TOKEN_USER
        secret = credential.password or credential.identity_token
        authorization = Credential(username=username, password=secret).basic()
        query.append(("account", username))
    if case.offline:
        query += [("client_id", _CLIENT_ID), ("offline_token", "true")]
    joint = "&" if urlsplit(case.realm).query else "?"
    return TokenRequest(
        url=f"{case.realm}{joint}{urlencode(query)}" if query else case.realm, authorization=authorization
    )


def _realm(realm: str, what: str, registry: str, *, plain_http: bool, insecure: bool) -> str:
    """The realm, if credentials may be sent there."""
    try:
        parts = urlsplit(realm)
        host = parts.netloc
        _ = parts.port  # raises for a malformed one
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or "@" in host or not _URL.fullmatch(realm):
        raise AuthenticationError(f"{what}: {registry} names a malformed token server: {printable(realm, limit=100)}")
    if parts.scheme == "http" and not insecure and not (plain_http and is_loopback(host)):
        raise AuthenticationError(f"{what}: {registry} names a token server without TLS: {printable(realm, limit=100)}")
    return realm.partition("#")[0]


def _token(answer: TokenAnswer, what: str, registry: str) -> Authorization:
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise RegistryError(f"{what}: token server of {registry}: its answer is malformed")
    token = document.get("token") or document.get("access_token")
    identity = document.get("refresh_token")
    checked = _checked(what, registry, token)
    return Authorization(
        header=checked.header,
        lifetime=_lifetime(document, answer.headers.get("date")),
        identity_token=identity if isinstance(identity, str) and _TOKEN.fullmatch(identity) else "",
    )


def _checked(what: str, registry: str, token: object) -> Authorization:
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise RegistryError(f"{what}: token server of {registry}: its answer holds no usable token")
    return Authorization(header=f"Bearer {token}")


def _lifetime(document: Mapping[str, object], date: str | None) -> float:
    """Seconds that the token is still good for.

    ``issued_at`` counts only against the server's own ``Date``: a token may have been handed out of a cache, and the
    local clock may be wrong by hours.
    """
    expires_in = document.get("expires_in")
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float) or not 0 < expires_in < 1e9:
        expires_in = _DEFAULT_LIFETIME
    issued_at = document.get("issued_at")
    age = 0.0
    if isinstance(issued_at, str) and date:
        try:
            # RFC 3339 with more than six digits of a second's fraction, as Go writes it, is beyond fromisoformat.
            issued = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", issued_at))
            age = (parsedate_to_datetime(date) - issued).total_seconds()
        except (TypeError, ValueError, OverflowError):
            age = 0.0
    return max(0.0, float(expires_in) - max(0.0, age))
