"""What a process says of itself when it is asked whether it lives and whether it is ready."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Health:
    """Reasons in words; without any, all is well."""

    dead: tuple[str, ...] = ()  #: why it must be started again
    not_ready: tuple[str, ...] = ()  #: why it gets nothing done though starting it again would not help

    @property
    def alive(self) -> bool:
        """Whether it should be left alone."""
        return not self.dead

    @property
    def ready(self) -> bool:
        """Whether it gets its work done."""
        return not self.dead and not self.not_ready

    @property
    def status(self) -> str:
        """`ok`, `degraded` (it waits for something else) or `dead`."""
        return "dead" if self.dead else "degraded" if self.not_ready else "ok"
