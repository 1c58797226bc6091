"""The cache engine. What `service` may use is named here; everything else is the engine's own."""

from engine.discovery import l2_types, policy_names
from engine.errors import EngineError, EngineStoppedError, EngineTimeoutError, StartError
from engine.runtime import Runtime
from engine.settings import GIB, MIB, EngineSettings, L2Settings, Liveness
from engine.status import (
    Cleared,
    KernelGroupReport,
    L1Report,
    L2Report,
    LayoutReport,
    StatusReport,
    WorkerReport,
    WorkerState,
)

__all__ = [
    "GIB",
    "MIB",
    "Cleared",
    "EngineError",
    "EngineSettings",
    "EngineStoppedError",
    "EngineTimeoutError",
    "KernelGroupReport",
    "L1Report",
    "L2Report",
    "L2Settings",
    "LayoutReport",
    "Liveness",
    "Runtime",
    "StartError",
    "StatusReport",
    "WorkerReport",
    "WorkerState",
    "l2_types",
    "policy_names",
]
