"""What an operator sees of the clients: every worker, in both modes, and the cache they fill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.interop.client import SERVER_COPIES, Engine, fresh, prompt
from tests.interop.kv import CHUNK, FUSED_HND
from tests.support.polling import until
from tests.support.server import ServerProcess

MakeEngine = Callable[..., Engine]


def _entry(server: ServerProcess, engine: Engine) -> dict[str, Any] | None:
    """What the status says of the engine's worker; both names of the table and the list of ids must agree."""
    _, status = server.get("/api/status")
    assert status["gpu_context_meta"] == status["cache_context_meta"]
    assert {str(instance) for instance in status["registered_gpu_ids"]} == set(status["cache_context_meta"])
    return status["cache_context_meta"].get(str(engine.worker.instance_id))


def test_a_worker_is_listed_from_its_registration_to_its_end(server: ServerProcess, mode: str) -> None:
    engine = Engine(server.url, mode)
    entry = until(lambda: _entry(server, engine), "the worker is listed")
    assert (entry["model_name"], entry["world_size"]) == (engine.model, 1)
    # A worker that copies by itself never says where its tensors are.
    assert (entry["device"], entry["transfer_mode"]) == ("cpu" if mode == SERVER_COPIES else None, mode)

    engine.close()
    until(lambda: _entry(server, engine) is None, "the worker is gone")


def test_the_layout_of_a_worker_is_shown(server: ServerProcess, make_engine: MakeEngine) -> None:
    engine = make_engine(SERVER_COPIES)
    layout = until(lambda: _entry(server, engine), "the worker is listed")["kv_cache_layout"]
    assert layout["num_layers"] == FUSED_HND.layers
    assert layout["num_blocks"] == FUSED_HND.num_blocks
    assert layout["block_size"] == FUSED_HND.block_size
    assert layout["is_mla"] is False
    assert "bfloat16" in layout["dtype"]


def test_stored_objects_are_counted(server: ServerProcess, engine: Engine) -> None:
    def manager() -> dict[str, int]:
        return server.get("/api/status")[1]["storage_manager"]["l1_manager"]

    before = manager()
    engine.worker.fill(engine.blocks(2))
    assert engine.worker.store(fresh("request"), prompt(2 * CHUNK), engine.blocks(2))

    until(lambda: manager()["total_object_count"] == before["total_object_count"] + 2, "two more objects")
    assert manager()["memory_used_bytes"] > before["memory_used_bytes"]


def test_a_session_lives_as_long_as_its_request(server: ServerProcess, engine: Engine) -> None:
    def sessions() -> int:
        return int(server.get("/api/status")[1]["active_sessions"])

    before, request = sessions(), fresh("request")
    engine.scheduler.lookup(request, prompt(CHUNK))
    until(lambda: sessions() == before + 1, "one more session")
    engine.scheduler.end(request)
    until(lambda: sessions() == before, "the session is gone")
