-- What the relay reads and drops.
-- Run as the schema's owner: they look across organisations and return ids only.

create or replace function peek_outbox(wanted integer) returns table (outbox_id bigint, org_id text, topic text, payload jsonb, created_at timestamptz)
    language sql security definer set search_path = public, pg_temp as $$
    select o.outbox_id, o.org_id, o.topic, o.payload, o.created_at from outbox o order by o.outbox_id limit wanted for update skip locked
$$;

create or replace function drop_outbox(delivered bigint[]) returns void language sql security definer set search_path = public, pg_temp as $$
    delete from outbox where outbox_id = any(delivered)
$$;
