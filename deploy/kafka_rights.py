"""What a user lacks on a cluster with access lists, asked of the broker before anything begins.

Later a missing right shows as a group that never gets a partition, or as a producer that retries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka.errors import GroupAuthorizationFailedError, IncompatibleBrokerVersion, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

if TYPE_CHECKING:
    from aiokafka.admin import AIOKafkaAdminClient

_READ, _WRITE = 3, 4  # Kafka's codes of operations
_UNKNOWN = -(2**31)


@dataclass(frozen=True, slots=True)
class Uses:
    """What a process does with the cluster."""

    reads: tuple[str, ...] = ()  #: topics
    writes: tuple[str, ...] = ()  #: topics
    group: str = ""  #: that it is a member of; empty: of none

    @property
    def topics(self) -> set[str]:
        """All of them."""
        return {*self.reads, *self.writes}


async def missing_rights(admin: AIOKafkaAdminClient, uses: Uses) -> list[str]:
    """Such as "WRITE on topic ae.windows"; empty too where a broker before Kafka 2.3 cannot be asked.

    Raises
    ------
    aiokafka.errors.KafkaError
        If it does not answer, or the group has no coordinator yet.
    """
    lacking = []
    try:
        # aiokafka's own request for metadata ends before the version that tells the operations.
        answer: Any = await admin._send_request(_Metadata(sorted(uses.topics)))
    except IncompatibleBrokerVersion:
        return []
    allowed = {name: operations for _, name, _, _, operations in answer.topics}
    for names, code, right in ((uses.reads, _READ, "READ"), (uses.writes, _WRITE, "WRITE")):
        lacking += [f"{right} on topic {name}" for name in names if not _includes(allowed.get(name, 0), code)]
    if uses.group:
        try:
            coordinator = await admin.find_coordinator(uses.group)
            described: Any = await admin._send_request(_DescribeGroup(uses.group), coordinator)
        except GroupAuthorizationFailedError:
            allowed_group = 0
        else:
            [(error_code, *_, operations)] = described.groups
            if error_code not in (0, GroupAuthorizationFailedError.errno):
                raise for_code(error_code)(f"group {uses.group}")
            allowed_group = 0 if error_code else operations
        if not _includes(allowed_group, _READ):
            lacking.append(f"READ on group {uses.group}")
    return lacking


def _includes(operations: int, code: int) -> bool:
    return operations == _UNKNOWN or bool(operations >> code & 1)


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", String()), ("port", Int32), ("rack", String()))),
        ("cluster_id", String()),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("name", String()),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class _MetadataRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String())),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _Metadata(Request[_MetadataRequest]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataRequest]) -> _MetadataRequest:
        return request_struct_class(self._topics, False, False, True)


class _DescribeGroupRequest(RequestStruct):  # type: ignore[misc]
    """As aiokafka's, whose answer is read as one of the version before, without the operations."""

    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = DescribeGroupsResponse_v3
    SCHEMA = DescribeGroupsRequest_v3.SCHEMA


class _DescribeGroup(Request[_DescribeGroupRequest]):  # type: ignore[misc]
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_DescribeGroupRequest]) -> _DescribeGroupRequest:
        return request_struct_class([self._group], True)
