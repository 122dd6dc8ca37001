"""The exceptions of the system, for users: ours by name, and Ray's names as aliases.

Purpose: `from shoal.exceptions import TaskError`, and `import shoal as ray; ray.exceptions.RayTaskError`.

What it does not do: define anything; the classes and their design are in `shoal.protocol.errors`.
"""

from __future__ import annotations

from shoal.protocol.errors import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorError,
    ActorHandleNotFoundError,
    ActorPlacementGroupRemoved,
    ActorUnavailableError,
    ActorUnschedulableError,
    AsyncioActorExit,
    AuthenticationError,
    ChannelError,
    ChannelTimeoutError,
    CompiledGraphCapacityExceeded,
    CrossLanguageError,
    GetTimeoutError,
    NodeDaemonDiedError,
    NodeDiedError,
    ObjectFetchTimedOutError,
    ObjectFreedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectReconstructionFailedLineageEvictedError,
    ObjectReconstructionFailedMaxAttemptsExceededError,
    ObjectRefStreamEndOfStreamError,
    ObjectStoreFullError,
    OutOfBandObjectRefSerializationError,
    OutOfDiskError,
    OutOfMemoryError,
    OwnerDiedError,
    PendingCallsLimitExceeded,
    ReferenceCountingAssertionError,
    RpcError,
    RuntimeEnvSetupError,
    ShoalError,
    StreamingGeneratorReplayInconsistentError,
    SystemError_,
    TaskCancelledError,
    TaskError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
    UnserializableException,
    WorkerCrashedError,
)

# Ray's names
RayError = ShoalError
RayTaskError = TaskError
RayActorError = ActorError
RaySystemError = SystemError_
RayChannelError = ChannelError
RayChannelTimeoutError = ChannelTimeoutError
RayCgraphCapacityExceeded = CompiledGraphCapacityExceeded
LocalRayletDiedError = NodeDaemonDiedError
UserCodeException = TaskError
PlasmaObjectNotAvailable = ObjectLostError
OufOfBandObjectRefSerializationException = OutOfBandObjectRefSerializationError

__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
    "ChannelError",
    "ChannelTimeoutError",
    "CompiledGraphCapacityExceeded",
    "CrossLanguageError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDaemonDiedError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectReconstructionFailedLineageEvictedError",
    "ObjectReconstructionFailedMaxAttemptsExceededError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OufOfBandObjectRefSerializationException",
    "OutOfBandObjectRefSerializationError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable",
    "RayActorError",
    "RayCgraphCapacityExceeded",
    "RayChannelError",
    "RayChannelTimeoutError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "RuntimeEnvSetupError",
    "ShoalError",
    "StreamingGeneratorReplayInconsistentError",
    "SystemError_",
    "TaskCancelledError",
    "TaskError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "WorkerCrashedError",
]
