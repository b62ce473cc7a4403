"""The requests that the demo's page answers, by host and origin.

No server is needed, because the guard is a function of a request.
"""
import asyncio
import json
import random
import re

import pytest

from utils.request_guard import COOKIE, MAX_BODY, RequestGuard

HOSTS = ['localhost', '127.0.0.1', '::1', 'gpu1']
JSON = [('content-type', 'application/json')]
GOOD = ['localhost', 'localhost:7860', 'LOCALHOST:1', '127.0.0.1:7860', '[::1]:7860', '[::1]', 'gpu1:7860']
BAD = ['', 'evil.com', 'evil.com:7860', 'localhost.evil.com', 'evil.com@localhost', 'localhost@evil.com',
       'localhost:7860:1', 'localhost:x',
       ' localhost', 'localhost ', 'localhost/', 'localhost\n', '127.0.0.1.evil.com', '127.1', '0x7f000001',
       '192.168.1.5', '[::1', '::1',
       '[::2]', '[localhost]', 'xn--localhost-', 'localhost,evil.com', '\u24c1ocalhost', 'null', '*']


async def page(scope, receive, send):
    """An app that returns the body of the request."""
    body = (await receive())['body'] if scope['method'] == 'POST' else b''
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'page ' + body})


def guard(**settings):
    return RequestGuard(page, HOSTS, re.compile(r'/call/\w+'), **settings)


def respond(app, headers=(), method='GET', path='/', query='', chunks=(b'',)):
    """(status, headers, body)."""
    sent, pieces = [], [{'type': 'http.request', 'body': chunk, 'more_body': True} for chunk in chunks]
    pieces[-1]['more_body'] = False

    async def receive():
        return pieces.pop(0)

    async def send(message):
        sent.append(message)
    encoded = [(name.encode(), value.encode('utf-8')) for name, value in headers]
    asyncio.run(app({'type': 'http', 'method': method, 'path': path, 'query_string': query.encode(),
                     'headers': encoded}, receive, send))
    return sent[0]['status'], dict(sent[0]['headers']), sent[1]['body'].decode()


@pytest.mark.parametrize('host', GOOD)
def test_own_hosts_are_answered(host):
    status, headers, body = respond(guard(), [('host', host)])
    assert status == 200 and body == 'page ' and b"frame-ancestors 'self'" in headers[b'content-security-policy']


@pytest.mark.parametrize('host', BAD)
def test_foreign_hosts_are_not(host):
    """DNS rebinding: a site gives its own name the address of this machine, and the browser sends that name."""
    status, _, body = respond(guard(), [('host', host)])
    assert status == 403 and '--allow_host' in body and 'page' not in body.replace('this page', '')


def test_one_host_is_needed():
    assert respond(guard())[0] == 403
    assert respond(guard(), [('host', 'localhost'), ('host', 'evil.com')])[0] == 403


def test_an_address_of_this_machine_is_its_host_if_others_are_let_in():
    """A site cannot rebind an address, because an address has no name."""
    for host in ('192.168.1.5:7860', '[fe80::1]:7860', '10.0.0.1'):
        assert respond(guard(any_address=True), [('host', host)])[0] == 200
    for host in ('evil.com', '192.168.1.5.evil.com', '192.168.1.999'):
        assert respond(guard(any_address=True), [('host', host)])[0] == 403


@pytest.mark.parametrize('origin, status', [
    ('http://localhost:7860', 200), ('https://localhost:7860', 200), ('http://evil.com', 403), ('null', 403), ('', 403),
    ('http://localhost', 403), ('http://localhost:8000', 403), ('http://127.0.0.1:7860', 403),
    ('http://localhost:7860.evil.com', 403),
    ('file://', 403), ('http://localhost:7860@evil.com', 403)])
@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_another_sites_requests_are_not_answered(origin, status, method):
    headers = [('host', 'localhost:7860'), ('origin', origin), *JSON]
    assert respond(guard(), headers, method, '/call/find')[0] == status


def test_hostile_headers_by_the_hundred():
    """Any header is refused with a sentence: none of these texts holds a name of the page."""
    rng, letters = random.Random(0), 'loca.:@[]1270/\\ %\t\x00\x7f\u202ex'
    for _ in range(500):
        text = ''.join(rng.choices(letters, k=rng.randrange(1, 12)))
        name = rng.choice(['host', 'origin', 'authorization', 'cookie'])
        headers = [('host', 'localhost')] * (name != 'host') + [(name, text)]
        status, _, body = respond(guard(token='tokentoken'), headers)
        assert status in (401, 403) and body.endswith('.\n') and text not in body.split(), (name, text)


@pytest.mark.parametrize('method, path, headers, chunks, status', [
    ('PUT', '/call/find', JSON, [b'{}'], 405), ('DELETE', '/', [], [b''], 405), ('OPTIONS', '/', [], [b''], 405),
    ('POST', '/upload', [('content-type', 'multipart/form-data; boundary=x')], [b'x'], 405),
    ('POST', '/upload', JSON, [b'{}'], 405),
    ('POST', '/', JSON, [b'{}'], 405), ('POST', '/call/../upload', JSON, [b'{}'], 405),
    ('POST', '/call/find', [('content-type', 'multipart/form-data; boundary=x')], [b'x'], 415),
    ('POST', '/call/find', [], [b'{}'], 415),
    ('POST', '/call/find', [('content-type', 'text/plain')], [b'{}'], 415),
    ('POST', '/call/find', [*JSON, ('content-length', str(MAX_BODY + 1))], [b'{}'], 413),
    ('POST', '/call/find', [*JSON, ('content-length', '9' * 5000)], [b'{}'], 413),
    ('POST', '/call/find', [*JSON, ('content-length', '-1')], [b'{}'], 413),
    ('POST', '/call/find', JSON, [b'x' * 60_000] * 2, 413), ('POST', '/call/find', JSON, [b'x' * MAX_BODY], 200),
    ('POST', '/call/find', [('content-type', 'application/json; charset=utf-8')], [b'{"a"', b': 1}'], 200)])
def test_descriptions_are_taken_and_uploads_are_not(method, path, headers, chunks, status):
    found, _, body = respond(guard(), [('host', 'localhost'), *headers], method, path, chunks=chunks)
    assert found == status
    if status == 200:
        assert body == 'page ' + b''.join(chunks).decode()


def test_the_longest_caption_fits():
    assert len(json.dumps({'data': ['\U0001f469' * 5_000], 'session_hash': 'x' * 20})) < MAX_BODY
    assert len(json.dumps({'data': ['\u7ea2' * 10_000], 'session_hash': 'x' * 20})) < MAX_BODY


def test_a_token_is_asked_for_and_kept_in_a_cookie():
    app, host = guard(token='tokentoken'), ('host', 'localhost')
    for headers, query in [([], ''), ([], 'token='), ([], 'token=tokentoke'), ([('cookie', f'{COOKIE}=other')], ''),
                           ([('authorization', 'Bearer x')], ''), ([('authorization', 'Basic tokentoken')], '')]:
        status, _, body = respond(app, [host, *headers], query=query)
        assert status == 401 and 'the complete address' in body
    status, headers, _ = respond(app, [host], query='token=tokentoken')
    cookie = headers[b'set-cookie'].decode()
    assert status == 303 and headers[b'location'] == b'/' and 'HttpOnly' in cookie and 'SameSite' in cookie
    assert respond(app, [host, ('cookie', f"a=b; {cookie.split(';')[0]}")])[0] == 200
    assert respond(app, [host, ('authorization', 'Bearer tokentoken')])[0] == 200
    assert respond(app, [('host', 'evil.com')], query='token=tokentoken')[0] == 403


def test_other_protocols():
    """A lifespan reaches the page. A web socket is closed, because it is not checked."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope['type'])

    async def send(message):
        seen.append(message)
    for kind in ('lifespan', 'websocket'):
        asyncio.run(RequestGuard(app, HOSTS, re.compile('/'))({'type': kind}, None, send))
    assert seen == ['lifespan', {'type': 'websocket.close', 'code': 1008}]
