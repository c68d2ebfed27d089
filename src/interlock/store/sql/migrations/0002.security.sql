-- Row-level security, append-only audit, and state moves that hold whatever the application does.
-- depends: 0001.tables

do $$ begin
    create role interlock_app nosuperuser nobypassrls nocreaterole nocreatedb;
exception when duplicate_object or unique_violation then
    null; -- roles belong to the server: another database of it made this one, or is making it now
end $$;

-- The organisations the current transaction works for; unset means none, so a forgotten scope sees nothing.
create function interlock_orgs() returns text[] language sql stable parallel safe
    return string_to_array(current_setting('interlock.orgs', true), ',');

do $$ declare name text; begin
    foreach name in array array['orgs', 'api_keys', 'subject_keys', 'artifacts', 'pending_objects', 'workflow_versions', 'workflow_heads', 'runs',
            'run_vaults', 'journal', 'signals', 'signal_ids', 'followed_runs', 'effects', 'results', 'queue', 'claims', 'reviews', 'dead_letters', 'audit',
            'audit_heads', 'outbox', 'deliveries', 'spans', 'breakers', 'tool_health', 'quotas', 'quota_uses', 'batches', 'batched_calls'] loop
        execute format('alter table %I enable row level security', name);
        execute format('create policy tenant on %I using (org_id = any(interlock_orgs())) '
                       'with check (org_id = any(interlock_orgs()))', name);
        execute format('grant select, insert, update, delete on %I to interlock_app', name);
    end loop;
end $$;
grant select on run_moves, effect_moves, workers to interlock_app;

-- The record: never updated or deleted, not by the owner either. What was a run's history stays its history.
revoke update, delete on audit, journal, artifacts, workflow_versions, run_vaults, signal_ids from interlock_app;
revoke delete on runs, effects, reviews, dead_letters, orgs, api_keys, subject_keys, audit_heads from interlock_app;

-- Functions below name their search path, with pg_temp last: else a temporary table named like ours would come first.
create function refuse_change() returns trigger language plpgsql set search_path = public, pg_temp as $$ begin
    raise exception '% is append-only', tg_table_name using errcode = 'IL003';
end $$;
create trigger append_only before update or delete on audit for each row execute function refuse_change();
create trigger no_truncate before truncate on audit for each statement execute function refuse_change();
create trigger append_only before update or delete on journal for each row execute function refuse_change();
create trigger no_truncate before truncate on journal for each statement execute function refuse_change();

create function check_run_move() returns trigger language plpgsql set search_path = public, pg_temp as $$ begin
    if not exists (select from run_moves where run_moves.old = old.status and run_moves.new = new.status) then
        raise exception 'a run cannot move from % to %', old.status, new.status using errcode = 'IL004';
    end if;
    return new;
end $$;
create trigger moves before update of status on runs for each row
    when (old.status is distinct from new.status) execute function check_run_move();

create function check_effect_move() returns trigger language plpgsql set search_path = public, pg_temp as $$ begin
    if not exists (select from effect_moves where effect_moves.old = old.status and effect_moves.new = new.status) then
        raise exception 'an effect cannot move from % to %', old.status, new.status using errcode = 'IL004';
    end if;
    return new;
end $$;
create trigger moves before update of status on effects for each row
    when (old.status is distinct from new.status) execute function check_effect_move();

insert into run_moves values
    ('queued', 'running'), ('queued', 'waiting'), ('queued', 'compensating'), ('queued', 'succeeded'), ('queued', 'partial'),
    ('queued', 'failed'), ('queued', 'cancelled'), ('queued', 'dead'),
    ('running', 'waiting'), ('running', 'compensating'), ('running', 'succeeded'), ('running', 'partial'),
    ('running', 'failed'), ('running', 'cancelled'), ('running', 'dead'),
    ('waiting', 'running'), ('waiting', 'compensating'), ('waiting', 'succeeded'), ('waiting', 'partial'),
    ('waiting', 'failed'), ('waiting', 'cancelled'), ('waiting', 'dead'),
    ('compensating', 'failed'), ('compensating', 'cancelled'), ('compensating', 'dead'), ('compensating', 'partial'),
    ('dead', 'compensating'), ('dead', 'failed'), ('dead', 'cancelled'), ('dead', 'partial');

insert into effect_moves values
    ('intended', 'executing'), ('intended', 'failed'),
    ('executing', 'succeeded'), ('executing', 'failed'), ('executing', 'unknown'),
    ('unknown', 'executing'), ('unknown', 'succeeded'), ('unknown', 'failed'),
    ('failed', 'intended'), ('failed', 'executing'),
    ('succeeded', 'compensated');
