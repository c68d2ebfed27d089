-- Parts of settle_v1 that wake runs, put them to sleep and end them: signals, batched calls and the queue.

-- One id counts once: the table's key refuses the second of two signals that were sent at the same moment.
create or replace function settle_v1_signal_ids(sent jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into signal_ids (run_id, signal_id, org_id, name) select run_id, signal_id, org_id, name
        from jsonb_to_recordset(sent) as i(run_id text, signal_id text, org_id text, name text);
    get diagnostics touched = row_count;
    return touched;
end $$;

-- Events from outside (a decision, a cancellation), which wake the run's driver, or make the run due.
create or replace function settle_v1_new_signals(sent jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into signals (org_id, run_id, event) select org_id, run_id, event
        from jsonb_to_recordset(sent) as s(org_id text, run_id text, event jsonb);
    get diagnostics touched = row_count;
    -- A run that is dead left the queue; a person may bring it back. Its fence begins above all that it ever had.
    insert into queue (run_id, org_id, workflow, engine, priority, machine, fence)
        select runs.run_id, runs.org_id, runs.workflow, runs.engine, runs.priority, runs.machine, (extract(epoch from now()) * 1000)::bigint
        from jsonb_to_recordset(sent) as s(run_id text) join runs using (run_id)
        where runs.status = 'dead'
        on conflict (run_id) do nothing;
    update queue set available_at = least(available_at, now())
        from jsonb_to_recordset(sent) as s(run_id text) where queue.run_id = s.run_id;
    perform pg_notify('interlock_queue', s.run_id) from jsonb_to_recordset(sent) as s(run_id text);
    return touched;
end $$;

-- Drives that ended in an error. A parked run is not due until a person decides about its dead letter or a signal comes; a poison
-- run is still suspect then.
create or replace function settle_v1_crashed(crashed jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update queue set crashes = crashes + 1, crash_streak = case when c.parked then least(crash_streak, 3) else crash_streak end,
            worker = case when c.parked then null else worker end,
            lease_until = case when c.parked then null else lease_until end,
            available_at = case when c.parked then 'infinity' else available_at end
        from jsonb_to_recordset(crashed) as c(run_id text, parked boolean) where queue.run_id = c.run_id;
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_requeued(requeued jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update queue set crashes = 0, crash_streak = 0, available_at = least(available_at, now())
        from jsonb_to_recordset(requeued) as r(run_id text) where queue.run_id = r.run_id;
    get diagnostics touched = row_count;
    perform pg_notify('interlock_queue', r.run_id) from jsonb_to_recordset(requeued) as r(run_id text);
    return touched;
end $$;

create or replace function settle_v1_used_signals(used jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    delete from signals using jsonb_to_recordset(used) as s(signal_id bigint) where signals.signal_id = s.signal_id;
    get diagnostics touched = row_count;
    return touched;
end $$;

-- Delivered to an engine that keeps its runs itself; the row is deleted with the record of it, and delivered again now and then
-- until then.
create or replace function settle_v1_forwarded_signals(forwarded jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update signals set forwarded_at = now() from jsonb_to_recordset(forwarded) as h(signal_id bigint)
        where signals.signal_id = h.signal_id;
    get diagnostics touched = row_count;
    return touched;
end $$;

-- Deletes batched calls that no run waits for, one by one or with their whole run: unsubmitted calls are never submitted, late
-- answers are dropped. A batch is deleted with the last of its calls.
create or replace function settle_v1_abandoned_calls(abandoned jsonb, finished jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    with orphaned as (
        select l.run_id, l.step from jsonb_to_recordset(abandoned) as l(run_id text, step text)
        union all select d.run_id, null from jsonb_to_recordset(finished) as d(run_id text)
    ), gone as (
        delete from batched_calls c using orphaned n
            where c.run_id = n.run_id and (n.step is null or c.step = n.step and c.status <> 'submitted')
            returning c.call_id, c.batch_id)
    delete from batches b where b.batch_id in (select g.batch_id from gone g) and not exists (
        select from batched_calls c where c.batch_id = b.batch_id and c.call_id not in (select g.call_id from gone g));
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_finished(finished jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    -- A run that is dead and got a signal meanwhile, which may bring it back, stays for the next driver.
    update queue set available_at = now(),
            worker = case when queue.engine = 'postgres' or queue.worker = queue.engine then null else worker end,
            lease_until = case when queue.engine = 'postgres' or queue.worker = queue.engine then null else lease_until end
        from jsonb_to_recordset(finished) as d(run_id text) join runs using (run_id)
        where queue.run_id = d.run_id and runs.status = 'dead'
            and exists (select from signals where signals.run_id = d.run_id);
    delete from queue using jsonb_to_recordset(finished) as d(run_id text) join runs using (run_id)
        where queue.run_id = d.run_id
            and not (runs.status = 'dead' and exists (select from signals where signals.run_id = d.run_id));
    get diagnostics touched = row_count;
    delete from signals using jsonb_to_recordset(finished) as d(run_id text) join runs using (run_id)
        where signals.run_id = d.run_id and runs.status <> 'dead'; -- they came too late
    -- A dead run may go on, and no claim from before its death may then keep a command.
    delete from claims using jsonb_to_recordset(finished) as d(run_id text)
        where claims.run_id = d.run_id and not exists (select from runs where runs.run_id = d.run_id and runs.status = 'dead');
    delete from reservations using jsonb_to_recordset(finished) as d(run_id text)
        where reservations.scope = 'run:' || d.run_id
            and not exists (select from runs where runs.run_id = d.run_id and runs.status = 'dead');
    update dead_letters set status = 'closed', decided_at = now()
        from jsonb_to_recordset(finished) as d(run_id text)
        where dead_letters.run_id = d.run_id and dead_letters.step = '' and dead_letters.purpose = 'parked_run'
            and dead_letters.status = 'open';
    return touched;
end $$;

-- Whether a run that its engine keeps counts among the runs at once. A bridge that has the lease just now goes first.
create or replace function settle_v1_places(places jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update queue set worker = case when p.held then queue.engine end,
            lease_until = case when p.held then 'infinity'::timestamptz end
        from jsonb_to_recordset(places) as p(run_id text, held boolean)
        where queue.run_id = p.run_id and (queue.worker is null or queue.worker = queue.engine);
    get diagnostics touched = row_count;
    return touched;
end $$;

-- A signal that came in while the run was being put to sleep keeps it awake, unless forwarding it has just `failed`. A run that is
-- `kept` by its engine holds a place: without limit if it works, for a moment if it only waits and got a signal, which may change nothing.
create or replace function settle_v1_released(released jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update queue set worker = case when w.kept then queue.engine end,
            lease_until = case when w.kept then case
                when exists (select from runs where runs.run_id = queue.run_id and runs.status in ('queued', 'running', 'compensating'))
                then 'infinity' else now() + interval '30 seconds' end end,
            crashes = 0, crash_streak = 0, available_at = case
            when not w.failed and exists (
                select from signals where signals.run_id = queue.run_id and signals.forwarded_at is null) then now()
            when not w.failed and exists (select from signals where signals.run_id = queue.run_id)
                then now() + interval '60 seconds'
            else coalesce(to_timestamp(w.wake_at), 'infinity'::timestamptz) end
        from jsonb_to_recordset(released) as w(run_id text, wake_at double precision, kept boolean, failed boolean)
        where queue.run_id = w.run_id;
    get diagnostics touched = row_count;
    return touched;
end $$;
