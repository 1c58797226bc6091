"""The cache engine. What `service` may use is named here; everything else is the engine's own."""

from engine.discovery import l2_types, policy_names
from engine.errors import EngineError, EngineStoppedError, EngineStuckError, EngineTimeoutError, StartError
from engine.health import Affects, CheckReport, LoopReport, MonitorReport
from engine.runtime import Runtime
from engine.settings import GIB, MIB, EngineSettings, L2Settings, Liveness
from engine.status import Cleared, L1Report, L2Report, LayoutReport, StatusReport, WorkerReport, WorkerState

__all__ = [
    "GIB",
    "MIB",
    "Affects",
    "CheckReport",
    "Cleared",
    "EngineError",
    "EngineSettings",
    "EngineStoppedError",
    "EngineStuckError",
    "EngineTimeoutError",
    "L1Report",
    "L2Report",
    "L2Settings",
    "LayoutReport",
    "Liveness",
    "LoopReport",
    "MonitorReport",
    "Runtime",
    "StartError",
    "StatusReport",
    "WorkerReport",
    "WorkerState",
    "l2_types",
    "policy_names",
]
