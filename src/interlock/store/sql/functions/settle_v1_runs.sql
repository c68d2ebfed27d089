-- Parts of settle_v1 that record runs: their claims, values, journals, rows and effects.

-- Dead runs that go on, on an engine that keeps its runs itself: dead, they left the queue. The fence begins above all that the
-- run ever had.
create or replace function settle_v1_revived(revived jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into queue (run_id, org_id, workflow, engine, priority, machine, available_at, fence)
        select runs.run_id, runs.org_id, runs.workflow, runs.engine, runs.priority, runs.machine, 'infinity', (extract(epoch from now()) * 1000)::bigint
        from jsonb_to_recordset(revived) as r(run_id text) join runs using (run_id)
        where runs.status = 'dead'
        on conflict (run_id) do nothing;
    get diagnostics touched = row_count;
    return touched;
end $$;

-- A run that is over has no row in the queue, which is locked by now, so its end and a claim never miss each other.
create or replace function settle_v1_new_claims(wanted jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into claims (run_id, command, org_id, fence) select run_id, command, org_id, fence
        from jsonb_to_recordset(wanted) as c(run_id text, command text, org_id text, fence bigint)
        where exists (select from queue where queue.run_id = c.run_id)
        order by run_id, command
        on conflict (run_id, command) do update set fence = excluded.fence
            where claims.fence < excluded.fence and claims.event is null;
    get diagnostics touched = row_count;
    if touched <> jsonb_array_length(wanted) then
        raise exception 'claimed, done, or over' using errcode = 'IL001';
    end if;
    return touched;
end $$;

-- Large values lie in the object store already. One that was swept meanwhile (IL006) cannot be named any more.
create or replace function settle_v1_objects(named text[]) returns integer language plpgsql as $$
begin
    perform from pending_objects where name = any(named) order by name for update;
    if exists (select from unnest(named) as n(name)
            where not exists (select from pending_objects p where p.name = n.name and p.swept_at is null)
            and not exists (select from artifacts a where a.object = n.name and a.org_id = split_part(n.name, '/', 2)
                and a.digest = split_part(split_part(n.name, '/', 3), '-', 1))) then
        raise exception 'an object was swept before its commit' using errcode = 'IL006';
    end if;
    return cardinality(named);
end $$;

create or replace function settle_v1_artifacts(sealed jsonb) returns integer language plpgsql as $$
declare touched integer; named text[];
begin
    named := array(select one ->> 'object' from jsonb_array_elements(sealed) as one where one ->> 'object' is not null);
    if named <> '{}' then
        touched := settle_v1_objects(named);
    end if;
    insert into artifacts (org_id, digest, size, subjects, ciphertext, object)
        select org_id, digest, size, subjects, decode(ciphertext, 'base64'), object
        from jsonb_to_recordset(sealed)
            as a(org_id text, digest text, size bigint, subjects text[], ciphertext text, object text)
        order by org_id, digest -- batches with the same values in them wait for each other here
        on conflict do nothing;
    get diagnostics touched = row_count;
    if named <> '{}' then -- where another object holds the same value already, the new one is left to be swept
        delete from pending_objects p using artifacts a
            where p.name = any(named) and a.org_id = p.org_id and a.object = p.name
                and a.digest = split_part(split_part(p.name, '/', 3), '-', 1);
    end if;
    return touched;
end $$;

create or replace function settle_v1_new_runs(accepted jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into runs (run_id, org_id, workflow, version, principal, idempotency_key, input, vault, flags, trace_id, span_id,
            engine, priority, machine)
        select run_id, org_id, workflow, version, principal, idempotency_key, input, vault, flags, trace_id, span_id,
            engine, priority, machine
        from jsonb_to_recordset(accepted) as r(run_id text, org_id text, workflow text, version text, principal jsonb,
            idempotency_key text, input jsonb, vault jsonb, flags text[], trace_id text, span_id text, engine text, priority smallint,
            machine integer);
    insert into queue (run_id, org_id, workflow, engine, priority, machine)
        select run_id, org_id, workflow, engine, priority, machine
        from jsonb_to_recordset(accepted) as r(run_id text, org_id text, workflow text, engine text, priority smallint,
            machine integer);
    get diagnostics touched = row_count;
    perform pg_notify('interlock_queue', '');
    return touched;
end $$;

create or replace function settle_v1_new_vaults(vaults jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into run_vaults (org_id, run_id, vault) select org_id, run_id, vault
        from jsonb_to_recordset(vaults) as v(org_id text, run_id text, vault jsonb);
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_journal(events jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into journal (run_id, seq, org_id, event) select run_id, seq, org_id, event
        from jsonb_to_recordset(events) as j(run_id text, seq integer, org_id text, event jsonb);
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_runs(moved jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update runs set status = r.status, reason = coalesce(r.reason, runs.reason), output = coalesce(r.output, runs.output),
            input_tokens = r.input_tokens, output_tokens = r.output_tokens, nano_usd = r.nano_usd, unpriced = r.unpriced, steps = r.steps,
            started_at = coalesce(runs.started_at, now()),
            finished_at = case when r.finished then now() end,
            flags = case when r.flags is null then runs.flags
                else array(select distinct flag from unnest(runs.flags || r.flags) as f(flag) order by flag) end
        from jsonb_to_recordset(moved) as r(run_id text, status text, reason text, output jsonb,
            input_tokens bigint, output_tokens bigint, nano_usd bigint, unpriced integer, steps integer, finished boolean, flags text[])
        where runs.run_id = r.run_id;
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_effects(ledger jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into effects (run_id, step, org_id, tool, idempotency_key, status, attempt, input, output)
        select run_id, step, org_id, tool, idempotency_key, status, attempt, input, output
        from jsonb_to_recordset(ledger) as e(run_id text, step text, org_id text, tool text,
            idempotency_key text, status text, attempt integer, input jsonb, output jsonb)
        on conflict (run_id, step) do update set status = excluded.status, attempt = excluded.attempt,
            -- Intended anew, it may be with other arguments: a person edited them.
            idempotency_key = case when excluded.status = 'intended' then excluded.idempotency_key else effects.idempotency_key end,
            input = case when excluded.status = 'intended' then excluded.input else effects.input end,
            output = coalesce(excluded.output, effects.output), updated_at = now();
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_done_claims(done jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update claims set event = d.event
        from jsonb_to_recordset(done) as d(run_id text, command text, event jsonb)
        where claims.run_id = d.run_id and claims.command = d.command;
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_results(kept jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into results (org_id, key, output) select distinct on (org_id, key) org_id, key, output
        from jsonb_to_recordset(kept) as r(org_id text, key text, output jsonb)
        order by org_id, key
        on conflict (org_id, key) do update set output = excluded.output, created_at = now();
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_outbox(events jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into outbox (org_id, topic, payload) select org_id, topic, payload
        from jsonb_to_recordset(events) as o(org_id text, topic text, payload jsonb);
    get diagnostics touched = row_count;
    return touched;
end $$;
