-- Who works on this database, and the request to stop. Run as the schema's owner: no organisation owns a worker.

-- Says that a worker is there; tells it whether it is to drain. One that was silent for a day is forgotten.
create or replace function worker_seen(claimant text, on_host text, process integer, drives text, release text) returns boolean
    language plpgsql security definer set search_path = public, pg_temp as $$
declare asked_to_drain boolean;
begin
    insert into workers (worker_id, host, pid, engine, version) values (claimant, on_host, process, drives, release)
        on conflict (worker_id) do update set seen_at = now() returning draining into asked_to_drain;
    delete from workers where seen_at < now() - interval '1 day';
    -- It was only stopped for a while: what was counted as its death was none.
    perform from queue where crash_streak > 0 and claimant = any(crashed_workers) order by run_id for update;
    update queue set crash_streak = greatest(0, crash_streak - cardinality(array_positions(crashed_workers, claimant))), crashed_workers = array_remove(crashed_workers, claimant)
        where crash_streak > 0 and claimant = any(crashed_workers);
    return asked_to_drain;
end $$;

create or replace function worker_gone(claimant text) returns void
    language sql security definer set search_path = public, pg_temp as $$
    delete from workers where worker_id = claimant
$$;

-- All of them, with how many runs each holds and for how many seconds it has been silent.
create or replace function list_workers() returns table (worker_id text, host text, pid integer, engine text, version text,
        started_at timestamptz, seen_at timestamptz, draining boolean, runs bigint, silent double precision)
    language sql stable security definer set search_path = public, pg_temp as $$
    select w.worker_id, w.host, w.pid, w.engine, w.version, w.started_at, w.seen_at, w.draining,
        (select count(*) from queue q where q.worker = w.worker_id),
        extract(epoch from now() - w.seen_at)::double precision
    from workers w order by w.started_at, w.worker_id
$$;

-- How many workers are there to claim runs: seen lately, and not asked to drain.
create or replace function present_workers(silent_seconds double precision) returns bigint
    language sql stable security definer set search_path = public, pg_temp as $$
    select count(*) from workers where not draining and seen_at > now() - make_interval(secs => silent_seconds)
$$;

-- True if a run is due, no worker holds it, and none is there that could claim it.
create or replace function needs_worker(of_run text, silent_seconds double precision) returns boolean
    language sql stable security definer set search_path = public, pg_temp as $$
    select exists (select from queue q where q.run_id = of_run and q.available_at <= now()
        and (q.worker is null or q.lease_until < now()) and not exists (select from workers w where w.engine = q.engine
            and not w.draining and w.seen_at > now() - make_interval(secs => silent_seconds)))
$$;

-- Asks a worker to finish the steps under way and go.
drop function if exists drain_workers(text);
create or replace function drain_worker(claimant text) returns void
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    update workers set draining = true where worker_id = claimant;
    perform pg_notify('interlock_workers', claimant);
end $$;
