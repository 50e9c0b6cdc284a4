"""The wire protocol, sans-IO: bytes in, events out. For the node's server and for the client.

This room opens no socket, reads no clock and starts no task; deadlines and times come and go as
numbers. docs/protocol.md describes the format.

    frames.py    FrameParser, frame(): two lengths, a msgpack header, a raw payload
    messages.py  one frozen record per request and push, and the table of them
    session.py   Session: hello, requests and answers, pushes, peer messages, in legal order only
    events.py    what a Session reports; Hello, Welcome, Refusal
    failures.py  the table between our exceptions and error answers, both ways
    document.py  the tables of docs/protocol.md, made from those of the code
    trust.py     tokens, keys, certificates; tls.py makes ssl.SSLContext of them (the only IO here)
    keyring.py   a node's secrets: one, or two while a new one takes the old one's place

    fields.py, codec.py    checks of single fields; msgpack with its strict settings

How to drive a session (both sides alike):

    session = Session.connecting(Hello(...))     the side that opened the connection
    session = Session.accepting()                a node that accepted one

    session.room(), session.receive(count)       the transport reads into that, in any chunks
    session.receive_data(data)                   the same of bytes that somebody else has read
    session.receive_eof()                        the transport ended
    for event in session.events(): ...           until None more; or next_event() -> Event | None
    transport.writelines(session.send_xxx(...))  every send returns a list of buffers to write, in
                                                 order; a payload is in it as it was given, uncopied

Both ``receive_*`` and ``next_event`` raise RemoteProtocolError when the peer broke the protocol;
the session is dead then and says so at each further call: close the transport. ``send_*`` raises
LocalProtocolError when we misuse it (a bug of ours); it changes nothing then.

    send_hello() -> Buffers                       connecting side, first of all
    send_welcome(welcome: Welcome) -> Buffers     answers HelloReceived
    send_refuse(refusal: Refusal, sentence: str) -> Buffers      instead of it; then close
    send_request(request, payload=b"", *, deadline_ms: int) -> tuple[int, Buffers]
        The request's id, ascending from 1. At most ``limits.requests_max`` wait for an answer:
        ``requests_outstanding`` tells. deadline_ms is the time that is left, 1 .. DEADLINE_MAX_MS.
    send_cancel(request_id) -> Buffers
        Every request gets exactly one answer, a cancelled one too: a FileError(EINTR), or the real
        one when they crossed.
    send_answer(request_id, value, payload=b"") -> Buffers       value as ``RequestType.answer``
    send_error(request_id, error: BaseException) -> Buffers
    send_push(push: Invalidate | DropAll) -> Buffers             numbered 1, 2, 3, ... by the caller
    send_acknowledge(sequence) -> Buffers         all pushes up to this one have taken effect
    send_peer(message: tuple, payload=b"") -> Buffers            node to node, no answer
    send_ping(token: int) / send_pong(token: int) -> Buffers
    send_goodbye(sentence: str) -> Buffers        nothing follows; answers may still arrive

    choose_version(hello) -> int | None           for the welcome; None: Refusal.VERSION

    state: State            peer: Hello | Welcome | None
    requests_outstanding: int      ours, without an answer yet
    unanswered: int                the peer's, that we have not answered yet
    unanswered_bytes: int  content held for them: stop reading while this is too much

Events (events.py), each a frozen record:

    HelloReceived(hello)                 check cluster and role, then send_welcome or send_refuse
    WelcomeReceived(welcome)             the session is open: send requests
    RefuseReceived(refusal, sentence)    the node does not want us; close
    RequestReceived(request_id, request, payload, deadline_ms)
    RequestNotUnderstood(request_id, error)      give it back: send_error(request_id, error)
    CancelReceived(request_id)           of a request not yet answered; answer it all the same
    AnswerReceived(request_id, request, value, payload)          value decoded and checked
    ErrorReceived(request_id, request, error)    ``error`` is an exception of errors.py, to raise
    PushReceived(push)
    AcknowledgeReceived(sequence)
    PeerReceived(message, payload)
    PingReceived(token)                  send_pong(token)
    PongReceived(token)
    GoodbyeReceived(sentence)            no new requests from us; close when all is answered
    ConnectionEnded()                    the peer closed between two frames; open requests of ours
                                         have failed with DisconnectedError

Tokens, certificates and TLS (trust.py, tls.py; randomness and time are arguments):

    NodeToken.new(48 random bytes); token.text(); parse_node_token(text);
    mount_token(node_token, MountLimits(read_only, directory, expires_s));
    parse_mount_token(text, now_s); parse_token(text, now_s)     TokenError is a UserError
    credentials = credentials_of(token)
    leaf = make_leaf(credentials, number, now_s, 32 random bytes)     again at leaf.renew_at_s
    tls.server_context(leaf, ...), tls.client_context(leaf) -> ssl.SSLContext
    server_hostname=credentials.server_name       says which certificates are believed
    tls.identity_of(ssl_object, credentials, now_s) -> PeerIdentity   TrustError: close
    identity.may_be(hello.role, hello.number)     False: send_refuse(Refusal.ROLE, ...)
    credentials.beacon_key                        HMAC key of discovery's beacons
"""
