"""An ASGI app around a local web page that decides which requests the page answers.

Every web site that is open in the same browser can reach a page on ``localhost``. A site may send requests to it, which
carry a foreign ``Origin``. It may also give its own name the address 127.0.0.1 and read the answers (DNS rebinding);
these requests carry a foreign ``Host``. The guard refuses both, and all uploads. If there is a token, it refuses
requests without it.
"""
import ipaddress
import re
import secrets
import socket
from urllib.parse import parse_qs

MAX_BODY = 100_000     # bytes: the longest caption that is read, with JSON's escapes
TOO_LONG = 413, f'A request has at most {MAX_BODY:,} bytes here.'
COOKIE = 'pedestal_token'
LOCAL_NAMES = ('localhost', '127.0.0.1', '::1')
# The page loads nothing from other sites, and no other site may show it in a frame.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"


class RequestGuard:
    """An ASGI app that forwards allowed requests to ``app``.

    Args:
        app: the ASGI app of the page.
        hosts: the names, without a port, that a ``Host`` header may hold.
        posts: a compiled pattern of the paths that accept a POST request with JSON.
        token: the token that a request must carry; None if it needs none.
        any_address: whether a ``Host`` may also be any IP address. No web site can give its name such a ``Host``.
    """

    def __init__(self, app, hosts, posts, token=None, any_address=False):
        self.app, self.hosts, self.posts, self.token = app, {name.lower() for name in hosts}, posts, token
        self.any_address = any_address

    async def __call__(self, scope, receive, send):
        if scope['type'] == 'lifespan':
            await self.app(scope, receive, send)
        elif scope['type'] != 'http':
            await send({'type': 'websocket.close', 'code': 1008})
        elif refusal := self.find_refusal(scope):
            await send_text(send, *refusal)
        elif self.token and self.has_token_in_query(scope):
            await self.store_token(send)
        elif scope['method'] != 'POST':
            await self.app(scope, receive, add_policy_headers(send))
        elif (body := await read_body(receive)) is None:
            await send_text(send, *TOO_LONG)
        else:
            await self.app(scope, replay_body(body, receive), add_policy_headers(send))

    def find_refusal(self, scope):
        """Return the ``(status, sentence)`` that refuses a request, None if it is allowed."""
        headers = {}
        for name, value in scope['headers']:
            headers.setdefault(name.decode('latin-1').lower(), []).append(value.decode('latin-1'))
        host = headers.get('host', [''])
        if len(host) != 1 or not self.is_known(host[0]):
            return 403, 'Open this page by the address that the program prints; --allow_host NAME allows another name.'
        own_origins = f'http://{host[0]}'.lower(), f'https://{host[0]}'.lower()
        if any(origin.lower() not in own_origins for origin in headers.get('origin', [])):
            return 403, 'Requests of other sites are not answered.'
        if scope['method'] not in ('GET', 'HEAD', 'POST'):
            return 405, 'This page accepts only GET and POST requests.'
        if self.token and not self.has_token(scope, headers):
            return 401, 'Open this page by the complete address that the program prints, with its token.'
        if scope['method'] != 'POST':
            return None
        if not self.posts.fullmatch(scope['path']):
            return 405, 'This page accepts descriptions and no uploads.'
        if headers.get('content-type', [''])[0].split(';')[0].strip().lower() != 'application/json':
            return 415, 'This page accepts only JSON.'
        length = headers.get('content-length', ['0'])[0]
        if not length.isdecimal() or int(length[:20]) > MAX_BODY:
            return TOO_LONG
        return None

    def is_known(self, host):
        """Whether a ``Host`` header, a name or an address with or without a port, belongs to this page."""
        match = re.fullmatch(r'(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::\d{1,5})?', host.lower())
        name = (match[1] or match[2]) if match else ''
        return name in self.hosts or self.any_address and is_address(name)

    def has_token_in_query(self, scope):
        """Whether the address of a request holds the token."""
        return self.is_token(parse_qs(scope['query_string'].decode('latin-1')).get('token', [''])[-1])

    def has_token(self, scope, headers):
        """Whether a request holds the token: in its address, a cookie or a header."""
        cookies = [pair.strip().partition('=') for line in headers.get('cookie', []) for pair in line.split(';')]
        tokens = [value for name, _, value in cookies if name == COOKIE]
        tokens += [line[len('Bearer '):] for line in headers.get('authorization', []) if line.startswith('Bearer ')]
        return self.has_token_in_query(scope) or any(map(self.is_token, tokens))

    def is_token(self, text):
        """Whether a text is the token."""
        return secrets.compare_digest(text.encode(), self.token.encode())

    async def store_token(self, send):
        """Store the token in a cookie, and remove it from the address, which histories and screenshots show."""
        cookie = f'{COOKIE}={self.token}; HttpOnly; SameSite=Lax; Path=/'
        await send_text(send, 303, '', [(b'location', b'/'), (b'set-cookie', cookie.encode()),
                                        (b'referrer-policy', b'no-referrer')])


async def send_text(send, status, text, headers=()):
    """Send a complete response of plain text."""
    await send({'type': 'http.response.start', 'status': status,
                'headers': [(b'content-type', b'text/plain; charset=utf-8'), (b'connection', b'close'), *headers]})
    await send({'type': 'http.response.body', 'body': f'{text}\n'.encode()})


async def read_body(receive):
    """Read the body of a request; None if it is too long."""
    body, message = b'', {'more_body': True}
    while message.get('more_body') and message.get('type') != 'http.disconnect':
        message = await receive()
        body += message.get('body', b'')
        if len(body) > MAX_BODY:
            return None
    return body


def replay_body(body, receive):
    """Return a ``receive`` that first returns ``body``, and then calls the given ``receive``."""
    messages = [{'type': 'http.request', 'body': body, 'more_body': False}]

    async def receive_again():
        return messages.pop() if messages else await receive()
    return receive_again


def add_policy_headers(send):
    """Return a ``send`` that adds the headers of :data:`POLICY`."""
    async def send_with_headers(message):
        if message['type'] == 'http.response.start':
            headers = [(b'content-security-policy', POLICY.encode()), (b'x-content-type-options', b'nosniff')]
            message = {**message, 'headers': [*message.get('headers', ()), *headers]}
        await send(message)
    return send_with_headers


def is_address(text):
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
        return True
    except ValueError:
        return False


def is_loopback(host):
    """Whether only programs on this machine can reach a server at ``host``.

    Example:
        >>> [is_loopback(host) for host in ('localhost', '127.0.0.1', '::1', '0.0.0.0', '::', 'gpu1')]
        [True, True, True, False, False, False]
    """
    return host == 'localhost' or is_address(host) and ipaddress.ip_address(host).is_loopback


def get_host_names():
    """Return the names of this machine in a network."""
    return {socket.gethostname(), socket.getfqdn()} - {''}
