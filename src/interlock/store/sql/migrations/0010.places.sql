-- Engines that keep a run themselves: its place among the runs at once, and what its parallel steps have reserved together.
-- depends: 0007.letters

-- A run handed to such an engine is leased to the engine itself, under its name, and counts like any leased run.
create index queue_signalled on queue (engine, available_at) where worker = engine;

-- What the command's call may use, later what it did use; null once the run's row says so, or if it needs nothing.
alter table claims add column tokens bigint;
alter table claims add column nano_usd bigint;
