-- The policy set in force for each organisation that activated one, of all organisations: what each process keeps in memory.
create or replace function active_policies() returns table (org_id text, version text)
    language sql stable security definer set search_path = public, pg_temp as $$
    select a.org_id, a.version from active_policies a where a.version is not null
$$;
