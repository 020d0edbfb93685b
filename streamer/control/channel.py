"""Ask all server processes at once, and act on what others ask.

ControlChannel.run
├── reader       requests and answers, as Redis passes them on
└── per request  carries it out and answers; a bounded number at a time

A process that asks acts itself too, without the way through Redis: it acts even if Redis is gone.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn, Protocol

import attrs
import structlog
import trio

from streamer.bounded_log import BoundedLog
from streamer.broker.errors import RedisConnectionError
from streamer.control.messages import Answer, Ask, decode, encode

_MAX_REQUESTS: Final = 32
"""Requests of others that are carried out at a time; further ones are dropped, and not answered."""

_MAX_KNOWN: Final = 1000
"""Requests that are remembered, so that one which Redis was sent twice is carried out once."""

_MAX_TEXT_BYTES: Final = 65_536
"""The largest request of others: the longest of the API, with room."""

_MAX_ANSWER_BYTES: Final = 16_777_216
"""The largest answer: a list of the most topics, with room."""

log = structlog.get_logger()

Act = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Carries out an action with its arguments here. Raises ValueError for ones that are not valid."""


class ControlBus(Protocol):
    """Carries texts to all processes, and to one (`streamer.broker.control.RedisControl`)."""

    async def ask(self, text: bytes) -> int:
        """Send a text to all processes; return how many received it, this one included."""

    async def answer(self, process_id: str, text: bytes) -> None:
        """Send a text to one process."""

    async def run(self) -> NoReturn:
        """Read what arrives, until cancelled."""


@attrs.frozen
class Answers:
    """The results of all processes."""

    results: Mapping[str, Mapping[str, Any]]
    """By process."""
    processes: int
    """How many processes were asked."""
    problem: str | None = None
    """Why no other process could be asked."""


@attrs.define(eq=False)
class _Question:
    """A request of this process, and the answers to it."""

    answers: dict[str, Answer] = attrs.field(factory=dict)
    came_back: bool = False
    """Whether this process has received its own request, so that it is among the receivers."""
    receivers: int | None = None
    changed: trio.Event = attrs.field(factory=trio.Event)

    def change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    @property
    def others(self) -> int | None:
        """How many other processes received it; None until Redis has said so."""
        return None if self.receivers is None else max(0, self.receivers - self.came_back)

    @property
    def is_complete(self) -> bool:
        return self.others is not None and len(self.answers) >= self.others


class ControlChannel:
    """One process's end of the control channel: a `ControlHandler`."""

    def __init__(
        self,
        process_id: str,
        act: Act,
        *,
        answer_seconds: float,
        on_connected: Callable[[], None],
    ) -> None:
        """`answer_seconds` is how long others may take to answer.

        `on_connected` is called when requests of others may have been missed before.
        """
        self.process_id = process_id
        self._act = act
        self._answer_seconds = answer_seconds
        self._on_connected = on_connected
        self._bus: ControlBus | None = None
        self._nursery: trio.Nursery | None = None
        self._questions: dict[str, _Question] = {}
        self._known: OrderedDict[str, None] = OrderedDict()
        self._carried_out = 0
        self._warn = BoundedLog(log.warning)

    def connect(self, bus: ControlBus) -> None:
        """Use a bus; without one, this process is the only one. Call it before `run`."""
        self._bus = bus

    async def run(self) -> NoReturn:
        """Serve the requests of others until cancelled."""
        async with trio.open_nursery() as self._nursery:
            if self._bus is not None:
                self._nursery.start_soon(self._bus.run)
            await trio.sleep_forever()
        raise AssertionError("it sleeps until it is cancelled")

    # Asking

    async def ask(self, action: str, arguments: Mapping[str, Any]) -> Answers:
        """Carry out an action here and everywhere; wait for the others, but not long.

        A process that fails counts as one that does not answer.
        """
        if self._bus is None:
            result = await self._act(action, arguments)
            return Answers({self.process_id: result}, processes=1)
        request = Ask(secrets.token_hex(8), self.process_id, action, arguments)
        question = self._questions[request.id] = _Question()
        outcome: list[str | None] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_others, self._bus, request, question, outcome)
                result = await self._act(action, arguments)
        finally:
            del self._questions[request.id]
        results = {self.process_id: result} | {
            process: answer.result
            for process, answer in question.answers.items()
            if answer.result is not None
        }
        return Answers(results, processes=1 + (question.others or 0), problem=outcome[0])

    async def _ask_others(
        self, bus: ControlBus, request: Ask, question: _Question, outcome: list[str | None]
    ) -> None:
        problem: str | None = None
        with trio.move_on_after(self._answer_seconds):
            try:
                question.receivers = await bus.ask(encode(request))
            except RedisConnectionError as error:
                problem = str(error)
            else:
                while not question.is_complete:
                    await question.changed.wait()
        if question.receivers is None and problem is None:
            problem = f"Redis did not answer within {self._answer_seconds:g} s"
        outcome.append(problem)

    # Called by the bus

    def on_connected(self) -> None:
        """Take note that requests arrive from now on."""
        self._on_connected()

    def on_answer(self, text: bytes) -> None:
        """Take an answer to a request of this process; a late one is dropped."""
        try:
            answer = decode(Answer, text, max_bytes=_MAX_ANSWER_BYTES)
        except ValueError as error:
            self._warn("answer", "control answer not understood", reason=str(error))
            return
        question = self._questions.get(answer.id)
        if question is None or answer.process == self.process_id:
            return
        if answer.error is not None:
            self._warn(
                "failed", "a process failed", process=answer.process[:80], reason=answer.error[:200]
            )
        question.answers.setdefault(answer.process, answer)
        question.change()

    def on_request(self, text: bytes) -> None:
        """Take a request to all processes."""
        try:
            request = decode(Ask, text, max_bytes=_MAX_TEXT_BYTES)
        except ValueError as error:
            self._warn("request", "control request not understood", reason=str(error))
            return
        if request.process == self.process_id:
            question = self._questions.get(request.id)
            if question is not None:
                question.came_back = True
                question.change()
            return
        if request.id in self._known or self._nursery is None or self._bus is None:
            return
        if self._carried_out >= _MAX_REQUESTS:
            self._warn("busy", "control request dropped: too many at a time", action=request.action)
            return
        self._known[request.id] = None
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        self._carried_out += 1
        self._nursery.start_soon(self._carry_out, self._bus, request)

    async def _carry_out(self, bus: ControlBus, request: Ask) -> None:
        try:
            answer = await self._answer(request)
            with trio.move_on_after(self._answer_seconds):  # nobody waits longer for it
                await bus.answer(request.process, encode(answer))
        except RedisConnectionError as error:
            self._warn("unanswered", "control request not answered", reason=str(error))
        finally:
            self._carried_out -= 1

    async def _answer(self, request: Ask) -> Answer:
        try:
            result = await self._act(request.action, request.arguments)
        except ValueError as error:
            self._warn("invalid", "control request refused", reason=str(error)[:200])
            return Answer(request.id, self.process_id, error=str(error)[:200])
        except Exception:
            log.exception("a control request failed", action=request.action)
            return Answer(request.id, self.process_id, error="a fault, which is logged there")
        return Answer(request.id, self.process_id, result)
