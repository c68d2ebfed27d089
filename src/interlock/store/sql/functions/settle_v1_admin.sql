-- Parts of settle_v1 about administration: they commit with the audit entries about them. The fields are those of store/admin_rows.py.

-- Run as the schema's owner, because only functions write heads of audit logs.
create or replace function settle_v1_new_orgs(made jsonb) returns integer
    language plpgsql security definer set search_path = public, pg_temp as $$
declare touched integer;
begin
    if exists (select from jsonb_to_recordset(made) as o(org_id text) where org_id <> all(interlock_orgs())) then
        raise exception 'another organisation' using errcode = 'insufficient_privilege';
    end if;
    insert into orgs (org_id, name) select org_id, name from jsonb_to_recordset(made) as o(org_id text, name text);
    get diagnostics touched = row_count;
    insert into audit_heads (org_id) select org_id from jsonb_to_recordset(made) as o(org_id text);
    return touched;
end $$;

create or replace function settle_v1_new_keys(issued jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into api_keys (key_id, org_id, secret_hash, user_id, roles)
        select key_id, org_id, decode(secret_hash, 'hex'), user_id, roles
        from jsonb_to_recordset(issued) as k(key_id text, org_id text, secret_hash text, user_id text, roles text[]);
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_revoked_keys(unwanted jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update api_keys set revoked_at = now() from jsonb_to_recordset(unwanted) as r(org_id text, key_id text)
        where api_keys.org_id = r.org_id and api_keys.key_id = r.key_id and api_keys.revoked_at is null;
    get diagnostics touched = row_count;
    if touched <> jsonb_array_length(unwanted) then
        raise exception 'no such key in force' using errcode = 'IL008';
    end if;
    return touched;
end $$;

-- One by one, because a batch may hold several of one quota: the last one counts.
create or replace function settle_v1_new_quotas(wanted jsonb) returns integer language plpgsql as $$
declare one record; touched integer := 0;
begin
    for one in select * from jsonb_to_recordset(wanted) as q(org_id text, scope text, name text, concurrency integer, rate integer,
            per_seconds double precision) loop
        insert into quotas (org_id, scope, name, concurrency, rate, per_seconds)
            values (one.org_id, one.scope, one.name, one.concurrency, one.rate, one.per_seconds)
            on conflict (org_id, scope, name) do update set concurrency = excluded.concurrency, rate = excluded.rate,
                per_seconds = excluded.per_seconds;
        touched := touched + 1;
    end loop;
    perform pg_notify('interlock_health', '');
    return touched;
end $$;

create or replace function settle_v1_removed_quotas(unwanted jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    delete from quotas using jsonb_to_recordset(unwanted) as r(org_id text, scope text, name text)
        where quotas.org_id = r.org_id and quotas.scope = r.scope and quotas.name = r.name;
    get diagnostics touched = row_count;
    if touched <> jsonb_array_length(unwanted) then
        raise exception 'no such quota' using errcode = 'IL008';
    end if;
    perform pg_notify('interlock_health', '');
    return touched;
end $$;

create or replace function settle_v1_new_versions(deployed jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into workflow_versions (org_id, name, version, definition, created_by)
        select org_id, name, version, definition, created_by
        from jsonb_to_recordset(deployed) as v(org_id text, name text, version text, definition jsonb, created_by text)
        on conflict do nothing;
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_moved_heads(moved jsonb) returns integer language plpgsql as $$
declare one record; touched integer := 0;
begin
    for one in select * from jsonb_to_recordset(moved) as h(org_id text, name text, version text) loop
        insert into workflow_heads (org_id, name, version) values (one.org_id, one.name, one.version)
            on conflict (org_id, name) do update set version = excluded.version, updated_at = now();
        touched := touched + 1;
    end loop;
    for one in select distinct org_id from jsonb_to_recordset(moved) as h(org_id text) loop
        perform renew_tool_health(one.org_id);
    end loop;
    return touched;
end $$;

create or replace function settle_v1_drained_workers(asked jsonb) returns integer language plpgsql as $$
declare one record; touched integer := 0;
begin
    for one in select worker_id from jsonb_to_recordset(asked) as w(worker_id text) loop
        perform drain_worker(one.worker_id);
        touched := touched + 1;
    end loop;
    return touched;
end $$;

-- Run as the schema's owner: it looks across organisations.
create or replace function settle_v1_requeued_deliveries(again jsonb) returns integer
    language plpgsql security definer set search_path = public, pg_temp as $$
declare touched integer;
begin
    update deliveries set status = 'pending', tries = 0, attempts = 0, failed_at = null, next_try = now()
        from jsonb_to_recordset(again) as r(sink text, event_id bigint)
        where deliveries.sink = r.sink and deliveries.event_id = r.event_id and deliveries.status = 'refused';
    get diagnostics touched = row_count;
    if touched <> jsonb_array_length(again) then
        raise exception 'an event is not refused any more' using errcode = 'IL005';
    end if;
    return touched;
end $$;
