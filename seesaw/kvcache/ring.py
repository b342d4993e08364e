"""Slots of memory that streams use in turn. Bounds what is under way, and keeps a slot from being
used again before its event."""

from __future__ import annotations

from seesaw.cuda.streams import Event


class Ring:
    """`num_slots` slots; each is with its user from `take` to `give`, and free when the event it
    was given with is over."""

    def __init__(self, num_slots: int) -> None:
        self._events: list[Event | None] = [None] * num_slots
        self._next = 0

    def take(self) -> int:
        """The slot that was given longest ago; waits for its event. Raises what that raises."""
        slot = self._next
        self._next = (slot + 1) % len(self._events)
        event = self._events[slot]
        if event is not None:
            event.synchronize()
        return slot

    def give(self, slot: int, event: Event) -> None:
        self._events[slot] = event
