-- Who is calling: before the organisation is known.
-- Run as the schema's owner: they look across organisations and return ids only.

create or replace function authenticate(presented text) returns table (org_id text, secret_hash bytea, user_id text, roles text[])
    language sql stable security definer set search_path = public, pg_temp as $$
    select k.org_id, k.secret_hash, k.user_id, k.roles from api_keys k where k.key_id = presented and k.revoked_at is null
$$;
