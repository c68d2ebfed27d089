"""A LangGraph graph of no-op nodes in a row with its PostgreSQL checkpointer.

`async` and `sync` run with `durability="sync"`: the checkpoint of a node is committed before the next node starts.
`async-ahead` runs with `durability="async"`, LangGraph's default, where the next node runs while the checkpoint is being
written: what Interlock does with a step that changes nothing outside.

Four modes. `async` and `sync` give each unit of concurrency a saver with a connection of its own: a saver holds one
lock around every query, so one saver shared by all (`async-pool`, as most applications have it) queues the runs behind
each other and measured slowest. Which of the others is faster changed with concurrency and load, so the harness
runs them and reports the faster. Statements of one checkpoint are pipelined, as they are by default with this libpq.
"""

import asyncio
import importlib.metadata
import os
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypedDict

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from measure import Load, Sample, measure_async, measure_threads, parse_load, report
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool


class State(TypedDict):
    value: int


async def node_async(state: State) -> State:
    return {"value": state["value"] + 1}


def node(state: State) -> State:
    return {"value": state["value"] + 1}


def compile_graph(load: Load, function: Callable[[State], Any], saver: BaseCheckpointSaver) -> Any:
    graph = StateGraph(State)
    names = [f"step_{number}" for number in range(load.steps)]
    for name in names:
        graph.add_node(name, function)
    for before, after in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(before, after)
    return graph.compile(checkpointer=saver)


def new_thread(load: Load) -> dict[str, Any]:
    # Every step is a superstep: LangGraph's limit counts them.
    return {"configurable": {"thread_id": str(uuid.uuid4())}, "recursion_limit": load.steps + 10}


async def measure_async_mode(load: Load) -> Sample:
    async with AsyncExitStack() as stack:
        if load.mode == "async-pool":
            # As in LangGraph's documentation for production: one saver on a pool.
            options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
            pool = AsyncConnectionPool(
                load.url, kwargs=options, min_size=load.concurrency, max_size=load.concurrency, open=False
            )
            savers = [AsyncPostgresSaver(await stack.enter_async_context(pool))] * load.concurrency
        else:
            opening = (AsyncPostgresSaver.from_conn_string(load.url) for _ in range(load.concurrency))
            savers = [await stack.enter_async_context(one) for one in opening]
        await savers[0].setup()
        graphs = [compile_graph(load, node_async, saver) for saver in savers]

        durability = "async" if load.mode == "async-ahead" else "sync"

        async def run(worker: int) -> None:
            await graphs[worker].ainvoke({"value": 0}, new_thread(load), durability=durability)

        return await measure_async(load, run)


def measure_sync_mode(load: Load) -> Sample:
    with ExitStack() as stack:
        opening = (PostgresSaver.from_conn_string(load.url) for _ in range(load.concurrency))
        savers = [stack.enter_context(one) for one in opening]
        savers[0].setup()
        graphs = [compile_graph(load, node, saver) for saver in savers]
        return measure_threads(
            load, lambda worker: graphs[worker].invoke({"value": 0}, new_thread(load), durability="sync")
        )


def measure(load: Load) -> Sample:
    # Read by LangSmith when the first graph runs: nothing is traced to a service, whatever the caller's shell says.
    for name in ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2"):
        os.environ[name] = "false"
    return measure_sync_mode(load) if load.mode == "sync" else asyncio.run(measure_async_mode(load))


if __name__ == "__main__":
    asked = parse_load(
        "LangGraph: a graph of no-op nodes, PostgreSQL checkpointer",
        modes=("async", "sync", "async-ahead", "async-pool"),
    )
    report("langgraph", importlib.metadata.version("langgraph"), asked, measure(asked))
