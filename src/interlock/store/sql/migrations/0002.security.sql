-- Row-level security, append-only audit, and state transitions that the database enforces independently of the application.
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
    foreach name in array array['orgs', 'api_keys', 'subject_keys', 'artifacts', 'pending_objects', 'workflow_versions', 'workflow_heads',
            'policy_sets', 'active_policies', 'runs',
            'run_vaults', 'journal', 'signals', 'signal_ids', 'followed_runs', 'effects', 'results', 'queue', 'claims', 'reservations', 'reviews',
            'approvals',
            'dead_letters', 'audit',
            'audit_heads', 'outbox', 'deliveries', 'spans', 'breakers', 'tool_health', 'quotas', 'quota_uses', 'batches', 'batched_calls'] loop
        execute format('alter table %I enable row level security', name);
        execute format('create policy tenant on %I using (org_id = any(interlock_orgs())) '
                       'with check (org_id = any(interlock_orgs()))', name);
        execute format('grant select, insert, update, delete on %I to interlock_app', name);
    end loop;
end $$;
grant select on run_moves, effect_moves, workers to interlock_app;

-- The record: never updated or deleted, not by the owner either. What was a run's history stays its history.
revoke insert, update, delete on audit, audit_heads from interlock_app; -- only settle_v1_audit writes them, as the owner
revoke update, delete on journal, artifacts, workflow_versions, policy_sets, run_vaults, signal_ids from interlock_app;
revoke delete on active_policies, runs, effects, reviews, approvals, dead_letters, orgs, api_keys, subject_keys from interlock_app;

-- Functions below name their search path, with pg_temp last: else a temporary table named like ours would come first.
create function refuse_change() returns trigger language plpgsql set search_path = public, pg_temp as $$ begin
    raise exception '% is append-only', tg_table_name using errcode = 'IL003';
end $$;
create trigger append_only before update or delete on audit for each row execute function refuse_change();
create trigger no_truncate before truncate on audit for each statement execute function refuse_change();
create trigger append_only before update or delete on journal for each row execute function refuse_change();
create trigger no_truncate before truncate on journal for each statement execute function refuse_change();

-- An approval begins unused, as what a person approved; it ends used or revoked, once.
create function check_approval() returns trigger language plpgsql set search_path = public, pg_temp as $$ begin
    if tg_op = 'INSERT' then
        if new.consumed_at is not null or new.revoked_at is not null or not exists (
            select from reviews v where v.review_id = new.review_id and v.org_id = new.org_id and v.run_id = new.run_id
                and v.status = 'approved' and v.decided_by = new.approver
                and v.act ->> 'step' = new.step and v.act ->> 'digest' = new.digest)
        then
            raise exception 'no review approved this act' using errcode = 'IL007';
        end if;
    elsif old.consumed_at is not null or old.revoked_at is not null
        or (old.review_id, old.org_id, old.run_id, old.step, old.digest, old.approver, old.roles, old.created_at, old.expires_at,
            old.signature) is distinct from (new.review_id, new.org_id, new.run_id, new.step, new.digest, new.approver, new.roles,
            new.created_at, new.expires_at, new.signature)
    then
        raise exception 'an approval is used or revoked once, and nothing else of it changes' using errcode = 'IL003';
    end if;
    return null;
end $$;
create trigger kept after insert or update on approvals for each row execute function check_approval();
create trigger no_truncate before truncate on approvals for each statement execute function refuse_change();

-- What a person was asked about stays what it was.
create trigger act_is_fixed after update of review_id, org_id, run_id, step, purpose, role, show, act on reviews
    for each row execute function refuse_change();

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
