"""The identity of one client and its permissions; the user's own topic.

Every connection of a user holds the topic `user:USER_ID` without asking for it. It does not count
against the connection's limit, and it is not unsubscribed from. A client that names its position in
it (`reconnect`, or `since`) is sent everything after that position: also what this connection has
already been sent of it, since a client cannot restore its position before the greeting.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import trio

from streamer.auth.authenticator import Authenticator
from streamer.auth.errors import TokenError, invalid
from streamer.auth.identity import Identity
from streamer.auth.permissions import Permissions
from streamer.config import Settings
from streamer.edge.sessions import RestorableSessions
from streamer.edge.token_expiry import TokenExpiry, TokenHolder
from streamer.hub.hub import Hub
from streamer.hub.outbox import Outbox
from streamer.hub.subscription import SubscriptionOptions, Want
from streamer.hub.upstream import Source
from streamer.protocol import messages
from streamer.protocol.errors import ErrorCode, ProtocolError
from streamer.protocol.messages import EndReason, Position, RequestId, Unsubscribed
from streamer.protocol.topics import SubscriptionType, Topic


class IdentifiedSession(TokenHolder, Protocol):
    """A session, as far as its identity is concerned."""

    async def admit_user(self, user_id: str) -> bool:
        """Take one of the places of a user; close the connection if there is none."""


class AccessServices(Protocol):
    """The parts of a server that identities need (`streamer.edge.requests.Services`)."""

    @property
    def hub(self) -> Hub:
        """Topics and clients."""

    @property
    def settings(self) -> Settings:
        """The settings of the server."""

    @property
    def source(self) -> Source:
        """The source of publications."""

    @property
    def sessions(self) -> RestorableSessions:
        """The records of sessions."""

    @property
    def authenticator(self) -> Authenticator:
        """Verifies tokens."""

    @property
    def permissions(self) -> Permissions:
        """Decides about topics."""

    @property
    def expiry(self) -> TokenExpiry:
        """Notices the ends of tokens."""


def own_topic(user_id: str) -> Topic:
    """Return the topic of the messages to a user."""
    return Topic(SubscriptionType.USER, user_id)


async def identify(services: AccessServices, token: str | None) -> Identity | None:
    """Verify the token of a request.

    Returns None for an anonymous client, or if tokens are ignored here. Raises TokenError.
    """
    if token is None or services.settings.auth == "none":
        return None
    try:
        with trio.fail_after(services.settings.auth_timeout_seconds):
            return await services.authenticator.authenticate(token)
    except trio.TooSlowError:
        raise invalid("the token could not be verified in time", is_final=False) from None


async def prepare_own_topic(services: AccessServices, identity: Identity) -> None:
    """Wait until the user's own topic is live, as a subscription to it would.

    A position that is learned later would begin with a gap. The caller must not wait between this
    call and `Access.begin`.
    """
    topic = own_topic(identity.user_id)
    with services.hub.awaiting([topic]):
        await services.source.prepare([topic], {})


class Access:
    """The identity of one connection."""

    __slots__ = ("_outbox", "_services", "_session", "identity")

    def __init__(
        self, session: IdentifiedSession | None, outbox: Outbox, services: AccessServices
    ) -> None:
        """`session` is None for a stream over HTTP, whose token does not change."""
        if session is not None:
            self._session = session
        self._outbox = outbox
        self._services = services
        self.identity: Identity | None = None
        """The user of the connection; None for an anonymous client."""

    # Permissions

    def forbidden(self, topics: Iterable[Topic]) -> list[Topic]:
        """Return those of these topics that the client may not subscribe to or restore."""
        decide, identity = self._services.permissions.decide, self.identity
        return [topic for topic in topics if not decide(identity, topic).is_allowed]

    def is_own(self, topic: Topic) -> bool:
        """Whether it is the topic of messages to the user, which the connection always holds."""
        return topic.is_personal and topic.target == self._outbox.user_id

    # Tokens

    def begin(self, identity: Identity | None) -> None:
        """Use the identity of the handshake. Does not wait."""
        if identity is not None:
            self._adopt(identity)
        elif self._services.settings.auth == "required":
            self._services.expiry.expect(self._session)

    def end(self) -> None:
        """Forget the connection, which has ended."""
        self._services.expiry.forget(self._session)
        # The session holds this object: without it, only the garbage collector would free the two.
        del self._session

    @property
    def expires_in(self) -> float | None:
        """Seconds until the token ends; None if it has no end, or there is none."""
        identity = self.identity
        return None if identity is None else self._services.expiry.remaining_seconds(identity)

    @property
    def positions(self) -> dict[str, Position]:
        """The position of the user's own topic; empty for an anonymous client."""
        hub = self._services.hub
        return {
            str(topic): hub.position(subscription)
            for subscription in self._outbox.subscriptions.values()
            if self.is_own(topic := subscription.lane.stream.topic)
        }

    async def authenticate(self, message: messages.Authenticate) -> None:
        """Use another token from now on, and answer. Raises ProtocolError."""
        self._check_on(message.request_id)
        try:
            identity = await self._services.authenticator.authenticate(message.token)
        except TokenError as error:
            raise _refused(error, message.request_id) from None
        if not await self._prepare(identity, message.request_id):
            return
        lost = self._adopt(identity)
        self._session.send_event(
            messages.Authenticated(
                identity.user_id, self.expires_in, self.positions, message.request_id
            )
        )
        self._announce(lost)

    async def refresh(self, message: messages.RefreshToken) -> None:
        """Get a new access token, use it from now on, and answer. Raises ProtocolError."""
        self._check_on(message.request_id)
        try:
            access_token, identity = await self._services.authenticator.refresh(
                message.refresh_token
            )
        except TokenError as error:
            raise _refused(error, message.request_id) from None
        if not await self._prepare(identity, message.request_id):
            return
        was_anonymous = self.identity is None
        lost = self._adopt(identity)
        self._session.send_event(
            messages.TokenRefreshed(
                access_token,
                self.expires_in,
                self.positions if was_anonymous else None,
                message.request_id,
            )
        )
        self._announce(lost)

    def _check_on(self, request_id: RequestId | None) -> None:
        if self._services.settings.auth == "none":
            raise ProtocolError(
                ErrorCode.INVALID_TOKEN,
                "this server does not ask for tokens",
                request_id=request_id,
            )

    async def _prepare(self, identity: Identity, request_id: RequestId | None) -> bool:
        """Check that the user stays the same; wait until the topic of a new one is live.

        Returns False if the connection is closed, since the user has too many.
        """
        if self.identity is None:
            if await self._session.admit_user(identity.user_id):
                await prepare_own_topic(self._services, identity)
                return True
            return False
        if identity.user_id != self.identity.user_id:
            raise ProtocolError(
                ErrorCode.FORBIDDEN,
                "the token is of another user than that of this connection; connect anew",
                request_id=request_id,
            )
        return True

    def _adopt(self, identity: Identity) -> list[Topic]:
        """Use an identity from now on. Returns the topics that it does not permit any more.

        Nothing of these is written after this. Does not wait: there is no moment at which the
        connection has the permissions of one token and the subscriptions of another.
        """
        services, outbox = self._services, self._outbox
        is_first = self.identity is None
        self.identity = identity
        outbox.user_id = identity.user_id
        services.expiry.watch(self._session, identity)
        if is_first:
            own = Want(own_topic(identity.user_id), SubscriptionOptions(snapshot=False))
            services.hub.subscribe(outbox, [own])
        held = [subscription.lane.stream.topic for subscription in outbox.subscriptions.values()]
        lost = self.forbidden(held)
        if lost:
            services.hub.unsubscribe(outbox, lost)
        services.sessions.changed(outbox.name)
        return lost

    def _announce(self, lost: Iterable[Topic]) -> None:
        """Notify the client of subscriptions that its new token has ended."""
        targets: dict[SubscriptionType, list[str]] = {}
        for topic in lost:
            targets.setdefault(topic.subscription_type, []).append(topic.target)
        for subscription_type, names in targets.items():
            self._session.send_event(
                Unsubscribed(subscription_type, names, [], EndReason.FORBIDDEN)
            )


def _refused(error: TokenError, request_id: RequestId | None) -> ProtocolError:
    return ProtocolError(error.code, error.message, request_id=request_id)
