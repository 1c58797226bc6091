"""The cache engine. What `service` may use is named here; everything else is the engine's own."""

from engine.discovery import l2_types, policy_names
from engine.empty import EMPTY_REPORT
from engine.errors import EngineError, EngineStoppedError, EngineTimeoutError, StartError
from engine.histogram import Histogram, HistogramReport
from engine.runtime import Runtime
from engine.settings import GIB, MIB, EngineSettings, L2Settings, Liveness
from engine.status import (
    Cleared,
    L1Report,
    L2Report,
    LayoutReport,
    LookupReport,
    StatusReport,
    TransferDirection,
    TransferMode,
    TransferReport,
    WorkerReport,
    WorkerState,
)

__all__ = [
    "EMPTY_REPORT",
    "GIB",
    "MIB",
    "Cleared",
    "EngineError",
    "EngineSettings",
    "EngineStoppedError",
    "EngineTimeoutError",
    "Histogram",
    "HistogramReport",
    "L1Report",
    "L2Report",
    "L2Settings",
    "LayoutReport",
    "Liveness",
    "LookupReport",
    "Runtime",
    "StartError",
    "StatusReport",
    "TransferDirection",
    "TransferMode",
    "TransferReport",
    "WorkerReport",
    "WorkerState",
    "l2_types",
    "policy_names",
]
