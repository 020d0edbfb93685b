"""The operator's part of one server process.

ProcessControl.run
├── connection   keeps the one that publishes requests and answers
├── channel      the requests of other processes
├── activity     looks at the sequences of topics
└── revocations  reads them when needed, and closes connections whose tokens were revoked
"""

from __future__ import annotations

from typing import NoReturn

import trio

from streamer.admin.api import Api
from streamer.admin.keys import ApiKeys
from streamer.auth.authenticator import Authenticator
from streamer.broker.control import RedisControl
from streamer.broker.requests import RedisClient
from streamer.broker.revocations import RedisRevocations
from streamer.control.actions import Actions, Here
from streamer.control.channel import ControlChannel
from streamer.control.operator import Operator, OperatorPublishing
from streamer.control.publishing import RedisPublishing
from streamer.control.revocations import RevocationSync


class ProcessControl:
    """Carries out what operators ask of this process, and of all through it."""

    def __init__(
        self,
        here: Here,
        authenticator: Authenticator,
        *,
        memory: OperatorPublishing | None,
        version: str,
    ) -> None:
        """`memory` publishes on the bus inside the process; None with Redis.

        Raises SettingError if the file of the operator's keys cannot be used.
        """
        settings = here.settings
        self._here = here
        self._commands: RedisClient | None = None
        store: RedisRevocations | None = None
        publishing = memory
        if publishing is None:
            self._commands = RedisClient(
                settings.redis, client_name=f"streamer-control-{here.process_id}"
            )
            store = RedisRevocations(self._commands)
            publishing = RedisPublishing(settings, self._commands)
        actions = Actions(here)
        self._revoking = RevocationSync(
            here.revocations,
            store,
            # Without identity, there are no tokens that could be revoked.
            reads=settings.auth != "none",
            on_new=actions.close_revoked,
        )
        self._channel = ControlChannel(
            here.process_id,
            actions,
            answer_seconds=settings.api_timeout_seconds,
            on_connected=self._revoking.read_soon,
        )
        if self._commands is not None:
            self._channel.connect(
                RedisControl(
                    settings.redis,
                    self._commands,
                    self._channel,
                    process_id=here.process_id,
                    probe_interval_seconds=settings.probe_interval_seconds,
                    probe_timeout_seconds=settings.probe_timeout_seconds,
                )
            )
        self.api: Api | None = None
        """The API over HTTP; None if it is off."""
        if settings.api_key_file is not None:
            operator = Operator(
                self._channel, publishing, self._revoking, authenticator, settings, version=version
            )
            self.api = Api(
                ApiKeys(settings.api_key_file),
                settings.max_publication_bytes,
                carry_out=operator.carry_out,
            )

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Carry out requests until cancelled; started after the first read of revocations."""
        async with trio.open_nursery() as nursery:
            if self._commands is not None:
                nursery.start_soon(self._commands.run)
            nursery.start_soon(self._here.activity.run)
            nursery.start_soon(self._channel.run)
            await nursery.start(self._revoking.run)
            task_status.started()
        raise AssertionError("its tasks run until they are cancelled")
