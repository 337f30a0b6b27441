import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CallFailureReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CALL_FAILURE_REASON_UNKNOWN: _ClassVar[CallFailureReason]
    CALL_FAILURE_REASON_INTERNAL_ERROR: _ClassVar[CallFailureReason]
    CALL_FAILURE_REASON_FUNCTION_ERROR: _ClassVar[CallFailureReason]
    CALL_FAILURE_REASON_REQUEST_ERROR: _ClassVar[CallFailureReason]
    CALL_FAILURE_REASON_WATCHER_TIMEOUT: _ClassVar[CallFailureReason]
CALL_FAILURE_REASON_UNKNOWN: CallFailureReason
CALL_FAILURE_REASON_INTERNAL_ERROR: CallFailureReason
CALL_FAILURE_REASON_FUNCTION_ERROR: CallFailureReason
CALL_FAILURE_REASON_REQUEST_ERROR: CallFailureReason
CALL_FAILURE_REASON_WATCHER_TIMEOUT: CallFailureReason

class WatcherDeadline(_message.Message):
    __slots__ = ("deadline",)
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    deadline: _timestamp_pb2.Timestamp
    def __init__(self, deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CallFailure(_message.Message):
    __slots__ = ("failure_reason",)
    FAILURE_REASON_FIELD_NUMBER: _ClassVar[int]
    failure_reason: CallFailureReason
    def __init__(self, failure_reason: _Optional[_Union[CallFailureReason, str]] = ...) -> None: ...
