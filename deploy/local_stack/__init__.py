"""A real Kafka and a real Redis-compatible server on this machine, without containers."""

from deploy.local_stack.service import StackError
from deploy.local_stack.stack import AlreadyRunning, LocalStack, ServiceStatus

__all__ = ["AlreadyRunning", "LocalStack", "ServiceStatus", "StackError"]
