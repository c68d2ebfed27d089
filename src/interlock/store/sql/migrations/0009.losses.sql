-- Runs that end the process that drives them.
-- depends: 0007.letters

-- Take-overs in a row from workers that died while the run got no further, which those were (of no meaning while there were none:
-- one that speaks again had not died), and how long its journal was when it was claimed.
alter table queue add column crash_streak smallint not null default 0;
alter table queue add column crashed_workers text[] not null default '{}';
alter table queue add column leased_seq integer;

-- Which busy worker makes room for a run that has to be driven alone, and until when it has said so.
alter table queue add column room_by text;
alter table queue add column room_until timestamptz;
create index queue_lost on queue (run_id) where crash_streak > 0;
create index queue_suspects on queue (engine, available_at) where crash_streak = 3 and worker is null;
