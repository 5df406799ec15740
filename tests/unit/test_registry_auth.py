"""Answering challenges, without sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import AuthenticationError, CrungoError, RegistryError
from crungo.registry.auth import Authorization, TokenAnswer, TokenRequest, authorize, merge_scopes, pull_scope
from crungo.registry.challenges import Challenge
from crungo.registry.credentials import Credential

REALM = "https://auth.example/token"
BEARER = Challenge(scheme="bearer", params={"realm": REALM, "service": "reg", "scope": "repository:a/b:pull"})
BASIC = Challenge(scheme="basic", params={"realm": "x"})
USER = Credential(username="me", password="pässword")
IDENTITY = Credential(identity_token="idtoken")

Server = Callable[[TokenRequest], TokenAnswer]


def answer(status: int = 200, headers: dict[str, str] | None = None, **document: object) -> TokenAnswer:
    return TokenAnswer(status=status, headers=headers or {}, body=json.dumps(document).encode())


def converse(
    challenges: list[Challenge],
    *answers: TokenAnswer,
    credential: Credential | None = None,
    scopes: tuple[str, ...] = (),
    plain_http: bool = False,
    insecure: bool = False,
    offline: bool = False,
) -> tuple[Authorization, list[TokenRequest]]:
    flow = authorize(
        challenges,
        what="manifest a/b:1",
        registry="reg.example",
        credential=credential,
        scopes=scopes,
        plain_http=plain_http,
        insecure=insecure,
        offline=offline,
    )
    requests: list[TokenRequest] = []
    coming = list(answers)
    received: TokenAnswer | None = None
    while True:
        try:
            requests.append(next(flow) if received is None else flow.send(received))
        except StopIteration as stop:
            result: Authorization = stop.value
            return result, requests
        received = coming.pop(0)


def query(request: TokenRequest) -> dict[str, list[str]]:
    return parse_qs(urlsplit(request.url).query)


def test_an_anonymous_token() -> None:
    got, (request,) = converse([BEARER], answer(token="t", expires_in=300), scopes=(pull_scope("a/b"),))
    assert got == Authorization(header="Bearer t", lifetime=300.0)
    assert request.authorization is None
    assert request.form is None
    assert query(request) == {"service": ["reg"], "scope": ["repository:a/b:pull"]}


def test_access_token_is_another_name_and_a_minute_the_default() -> None:
    got, _ = converse([BEARER], answer(access_token="t"))
    assert got == Authorization(header="Bearer t", lifetime=60.0)


def test_a_password_goes_to_the_realm_as_basic() -> None:
    got, (request,) = converse([BASIC, BEARER], answer(token="t", refresh_token="keep"), credential=USER, offline=True)
    assert got.identity_token == "keep"
    assert request.authorization == USER.basic() == "Basic bWU6cMOkc3N3b3Jk"
    assert query(request)["account"] == ["me"]
    assert query(request)["offline_token"] == ["true"]


def test_an_identity_token_is_posted() -> None:
    got, (request,) = converse([BEARER], answer(access_token="t"), credential=IDENTITY)
    assert got.header == "Bearer t"
    assert request == TokenRequest(
        url=REALM,
        form={
            "grant_type": "refresh_token",
            "refresh_token": "idtoken",
            "service": "reg",
            "client_id": "crungo",
            "scope": "repository:a/b:pull",
        },
    )


@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_a_server_without_oauth_gets_the_identity_token_by_get(status: int) -> None:
    got, (first, second) = converse([BEARER], answer(status), answer(token="t"), credential=IDENTITY)
    assert got.header == "Bearer t"
    assert first.form is not None
    assert second.form is None
    assert second.authorization == Credential(username="<token>", password="idtoken").basic()


def test_a_refused_identity_token_is_not_tried_again() -> None:
    with pytest.raises(AuthenticationError, match=r"token server of reg\.example answered 401") as caught:
        converse([BEARER], answer(401, details="expired"), credential=IDENTITY)
    assert caught.value.hint == "the stored credentials were refused; log in again: crungo login reg.example"


def test_a_registry_token_needs_no_server() -> None:
    got, requests = converse([BEARER], credential=Credential(registry_token="ready"))
    assert got == Authorization(header="Bearer ready")
    assert requests == []


def test_basic() -> None:
    got, requests = converse([BASIC], credential=USER)
    assert got == Authorization(header=USER.basic())
    assert requests == []
    with pytest.raises(AuthenticationError, match="wants a user name and a password"):
        converse([BASIC])


def test_a_bearer_challenge_without_realm_leaves_basic() -> None:
    got, _ = converse([Challenge(scheme="bearer"), BASIC], credential=USER)
    assert got.header.startswith("Basic ")


@pytest.mark.parametrize("challenges", [[], [Challenge(scheme="negotiate")], [Challenge(scheme="bearer")]])
def test_unknown_challenges(challenges: list[Challenge]) -> None:
    with pytest.raises(AuthenticationError, match="login of an unknown kind"):
        converse(challenges, credential=USER)


@pytest.mark.parametrize(
    ("realm", "plain_http", "insecure", "fine"),
    [
        ("https://elsewhere.example/t?x=1", False, False, True),
        ("http://auth.example/t", False, False, False),
        ("http://auth.example/t", True, False, False),
        ("http://auth.example/t", False, True, True),
        ("http://127.0.0.1:5001/t", True, False, True),
        ("http://127.0.0.1:5001/t", False, False, False),
        ("https://user:pass@auth.example/t", False, True, False),
        ("ftp://auth.example/t", False, True, False),
        ("//auth.example/t", False, True, False),
        ("/token", False, True, False),
        ("https://auth.example/a b", False, True, False),
        ("https://auth.example/\r\nX: y", False, True, False),
        ("https://auth.example:port/", False, True, False),
        ("https://[::1/", False, True, False),
    ],
)
def test_where_credentials_may_be_sent(realm: str, plain_http: bool, insecure: bool, fine: bool) -> None:
    challenge = Challenge(scheme="bearer", params={"realm": realm})
    if fine:
        _, (request,) = converse([challenge], answer(token="t"), plain_http=plain_http, insecure=insecure)
        assert request.url == realm
    else:
        with pytest.raises(AuthenticationError, match=r"names a (malformed )?token server") as caught:
            converse([challenge], answer(token="t"), credential=USER, plain_http=plain_http, insecure=insecure)
        assert caught.value.message.isprintable()


def test_a_realm_with_a_query_keeps_it() -> None:
    challenge = Challenge(scheme="bearer", params={"realm": "https://a.example/t?x=1#part", "service": "s"})
    _, (request,) = converse([challenge], answer(token="t"))
    assert request.url == "https://a.example/t?x=1&service=s"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"token": ""}',
        b'{"token": 3}',
        b'{"token": "a\\r\\nX: y"}',
        b'{"token": "a b"}',
        b"[" * 100_000,
        b'{"token": "' + b"x" * 70_000 + b'"}',
    ],
)
def test_malformed_tokens(body: bytes) -> None:
    with pytest.raises(RegistryError, match=r"token server of reg\.example: its answer"):
        converse([BEARER], TokenAnswer(status=200, body=body))


@pytest.mark.parametrize("status", [307, 429, 500, 503])
def test_a_failing_token_server_is_no_refusal(status: int) -> None:
    with pytest.raises(RegistryError, match=f"answered {status}") as caught:
        converse([BEARER], answer(status, {"retry-after": "9"}))
    assert not isinstance(caught.value, AuthenticationError)
    assert (caught.value.status, caught.value.retry_after) == (status, 9.0)


@pytest.mark.parametrize(
    ("document", "date", "lifetime"),
    [
        ({"expires_in": 300}, None, 300.0),
        ({"expires_in": "300"}, None, 60.0),
        ({"expires_in": -5}, None, 60.0),
        ({"expires_in": True}, None, 60.0),
        ({"expires_in": float("nan")}, None, 60.0),
        ({"expires_in": 300, "issued_at": "2026-01-01T00:00:00Z"}, None, 300.0),
        ({"expires_in": 300, "issued_at": "2026-01-01T00:00:00Z"}, "Thu, 01 Jan 2026 00:01:40 GMT", 200.0),
        ({"expires_in": 300, "issued_at": "2026-01-01T00:00:00.123456789Z"}, "Thu, 01 Jan 2026 01:00:00 GMT", 0.0),
        ({"expires_in": 300, "issued_at": "2026-01-01T00:00:50Z"}, "Thu, 01 Jan 2026 00:00:00 GMT", 300.0),
        ({"expires_in": 300, "issued_at": "yesterday"}, "Thu, 01 Jan 2026 00:00:00 GMT", 300.0),
        ({"expires_in": 300, "issued_at": "2026-01-01T00:00:00"}, "Thu, 01 Jan 2026 00:01:40 GMT", 300.0),
        ({"expires_in": 300, "issued_at": "2026-01-01T00:00:00Z"}, "some day", 300.0),
    ],
)
def test_lifetimes(document: dict[str, object], date: str | None, lifetime: float) -> None:
    got, _ = converse([BEARER], answer(200, {"date": date} if date else {}, token="t", **document))
    assert got.lifetime == lifetime


@pytest.mark.parametrize(
    ("scopes", "merged"),
    [
        (["repository:a:pull", "repository:a:push,pull"], ("repository:a:pull,push",)),
        (["repository:a:pull", "repository:b:pull"], ("repository:a:pull", "repository:b:pull")),
        (["repository(plugin):a:pull"], ("repository(plugin):a:pull",)),
        (["registry:catalog:*", "odd", "odd", ""], ("registry:catalog:*", "odd")),
        (["repository:host:5000/a:pull"], ("repository:host:5000/a:pull",)),
        ([], ()),
    ],
)
def test_merging_scopes(scopes: list[str], merged: tuple[str, ...]) -> None:
    assert merge_scopes(scopes) == merged


@given(st.lists(st.sampled_from(["a", "b"]).flatmap(
    lambda name: st.lists(st.sampled_from(["pull", "push", "delete"]), min_size=1).map(
        lambda actions: f"repository:{name}:{','.join(actions)}"
    )
)))  # fmt: skip
def test_merged_scopes_ask_for_the_same(scopes: list[str]) -> None:
    def asked(of: list[str]) -> set[tuple[str, str]]:
        return {(scope.rsplit(":", 1)[0], action) for scope in of for action in scope.rsplit(":", 1)[1].split(",")}

    merged = merge_scopes(scopes)
    assert asked(list(merged)) == asked(scopes)
    assert len({scope.rsplit(":", 1)[0] for scope in merged}) == len(merged)


@given(st.binary(max_size=200), st.integers(200, 599))
def test_no_answer_breaks_the_flow(body: bytes, status: int) -> None:
    message = ""
    try:
        got, _ = converse([BEARER], TokenAnswer(status=status, body=body))
        assert got.header.startswith("Bearer ")
    except CrungoError as error:
        message = error.message
    assert message.isprintable()


def test_secrets_are_not_shown() -> None:
    got, (request,) = converse([BEARER], answer(token="sesame"), credential=USER)
    assert "sesame" not in repr(got)
    assert "sesame" not in repr(answer(token="sesame"))
    assert "Basic" not in repr(request)
    assert "pässword" not in repr(USER)
