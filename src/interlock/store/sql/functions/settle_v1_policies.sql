-- Parts of settle_v1 that store and activate policy sets.

create or replace function settle_v1_new_policies(stored jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into policy_sets (org_id, version, text, created_by)
        select org_id, version, text, created_by
        from jsonb_to_recordset(stored) as p(org_id text, version text, text text, created_by text)
        on conflict do nothing;
    get diagnostics touched = row_count;
    return touched;
end $$;

-- One by one, because a batch may hold several activations of one organisation: the last one counts.
create or replace function settle_v1_activated_policies(activated jsonb) returns integer language plpgsql as $$
declare one record; touched integer := 0;
begin
    for one in select * from jsonb_to_recordset(activated) as p(org_id text, version text, activated_by text) loop
        insert into active_policies (org_id, version, activated_by) values (one.org_id, one.version, one.activated_by)
            on conflict (org_id) do update
                set version = excluded.version, activated_by = excluded.activated_by, activated_at = now();
        touched := touched + 1;
    end loop;
    perform pg_notify('interlock_health', '');
    return touched;
end $$;
